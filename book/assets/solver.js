// The theorem's race, computed in the page: gradient flow of the entries of A (B = C^T = ones) on baseline and special
// sequences. explorable.js draws it; loaded only by the pages that do; no library, no network.
//
// With h, l = q, 0 (free A) or q + 2, 2 (a = exp(s)) every entry obeys one equation,
//     da/dt = f(a) = alpha p r_p a^h + beta r_1 a^l,    r_m = 1 - sum_k a_k^m.
// The unknowns are a_1 and the logarithms of the gaps between neighbours, d log(x - y)/dt = (f(x) - f(y)) / (x - y): Horner's
// scheme gives the quotient without a subtraction, so that a near tie keeps its digits however small it is.
// With a = exp(-u), u = exp(s), it is the s that obey one equation,
//     ds/dt = -(alpha p r_p u exp(-p u) + beta r_1 u exp(-u)),
// and the unknowns are s_1 and the logarithms of the gaps between the s: a winner at 1 - 1e-30 keeps its digits too. The method is
// RODAS of Hairer and Wanner (Solving Ordinary Differential Equations II, section IV.7): linearly implicit, order 4, an error
// estimate of order 3, L-stable. tests/test_explorable.py compares it with ssm_poison_lib.

"use strict";

const poisonRace = (() => {
  const GAMMA = 0.25;
  const SUMS = [ // stage i starts from y + sum_j SUMS[i][j] k_j; the last two stages add k_5 alone, then k_6
    [],
    [1.544],
    [0.9466785280815826, 0.2557011698983284],
    [3.314825187068521, 2.896124015972201, 0.9986419139977817],
    [1.221224509226641, 6.019134481288629, 12.53708332932087, -0.687886036105895],
    [1.221224509226641, 6.019134481288629, 12.53708332932087, -0.687886036105895, 1],
  ];
  const RATES = [ // (1/(h GAMMA) - J) k_i = f(...) + sum_j RATES[i][j] k_j / h
    [],
    [-5.6688],
    [-2.430093356833875, -0.2063599157091915],
    [-0.1073529058151375, -9.594562251023355, -20.47028614809616],
    [7.496443313967647, -10.24680431464352, -33.99990352819905, 11.708908932061603],
    [8.083246795921522, -7.981132988064893, -31.52159432874371, 16.31930543123136, -6.058818238834054],
  ];
  const TOLERANCE = 1e-5; // of a log gap, and of a_1 in proportion, per step
  const TAIL = 3e-4; // the same beyond the fit, where a winner with a = exp(-exp(s)) waits for the others over many decades of time
  const FITTED = 1e-5; // largest residual of a fit
  const FINISHED = { free: 1e-10, exp: FITTED, "exp(-exp)": FITTED }; // and where the flow is left; with exp residuals fall as a power of t only
  const SETTLED = 1e-4; // one sequence alone with exp(-exp): the residual, in proportion to what the losers add
  const LEAST_FORCE = 1e-11;
  const MOST_STEPS = 20000;

  // The authors' start of seed 242 divided by its largest entry; entry 2 is 1 - gap.
  const SHAPE = [1, NaN, 0.77107, 0.74506, 0.69028, 0.40104, 0.1911, 0.12798, 0.07502, 0.06573];

  function power(x, n) {
    let y = 1;
    for (let k = 0; k < n; k++) y *= x;
    return y;
  }

  function residual(a, lag) {
    let sum = 0;
    for (let j = 0; j < a.length; j++) sum += power(a[j], lag);
    return 1 - sum;
  }

  /** Fill a with the entries a_1 > a_2 > ... of the unknowns. */
  function entries(theta, a) {
    a[0] = theta[0];
    for (let j = 1; j < theta.length; j++) a[j] = a[j - 1] - Math.exp(theta[j]);
  }

  /** The same where the unknowns are those of the s; return 1 - a_1^p and 1 - a_1 with the digits that a_1 itself cannot hold. */
  function doubleEntries(theta, a, p) {
    let s = theta[0];
    a[0] = Math.exp(-Math.exp(s));
    for (let j = 1; j < theta.length; j++) {
      s += Math.exp(theta[j]);
      a[j] = Math.exp(-Math.exp(s));
    }
    const u = Math.exp(theta[0]);
    return [-Math.expm1(-p * u), -Math.expm1(-u)];
  }

  /** Return r_p and r_1, and what the losers take from each, of the unknowns. */
  function residuals(theta, phase, a) {
    const { p } = phase, top = phase.double ? doubleEntries(theta, a, p) : (entries(theta, a), [1 - power(a[0], p), 1 - a[0]]);
    let large = 0, small = 0;
    for (let j = 1; j < a.length; j++) {
      large += power(a[j], p);
      small += a[j];
    }
    return { r_p: top[0] - large, r_1: top[1] - small, large, small };
  }

  /** Fill out with the velocity of the unknowns, and J (row by row) with its Jacobian unless it is null. */
  function velocity(theta, phase, a, out, J) {
    if (phase.double) { doubleVelocity(theta, phase, a, out, J); return; }
    const d = theta.length, { high, low, p, alpha, beta } = phase;
    entries(theta, a);
    const big = alpha * p * residual(a, p), small = beta * residual(a, 1);
    for (let j = 0; j < d; j++) {
      // x^high and x^low (j = 0), or their divided differences at x = a_{j-1}, y = a_j; and derivatives by x and by y.
      const y = a[j], x = j ? a[j - 1] : y;
      let large = 0, byX = 0, byY = 0;
      if (j === 0) {
        large = power(x, high);
        byX = big * high * power(x, high - 1) + (low ? 2 * small * x : 0);
      } else {
        for (let m = 0, lead = 1, slope = 0; m < high; m++) { // lead = x^m, slope = m x^(m-1)
          byX = slope + y * byX;
          byY = large + y * byY;
          large = lead + y * large;
          slope = lead + x * slope;
          lead *= x;
        }
        byX = big * byX + (low ? small : 0);
        byY = big * byY + (low ? small : 0);
      }
      const little = j ? (low ? x + y : 0) : (low ? x * x : 1);
      out[j] = big * large + small * little;
      if (!J) continue;
      const row = j * d, before = j ? j - 1 : 0;
      for (let i = 0; i < d; i++) J[row + i] = -alpha * p * p * large * power(a[i], p - 1) - little * beta;
      J[row + before] += byX;
      J[row + j] += byY;
      // From the entries to the unknowns: a_i is a_1 minus the gaps before it.
      for (let i = d - 2; i >= 0; i--) J[row + i] += J[row + i + 1];
      for (let i = 1; i < d; i++) J[row + i] *= a[i] - a[i - 1];
    }
  }

  /** The same for a = exp(-u), u = exp(s), psi_n(s) = u exp(-n u): n = p comes from baseline, n = 1 from special sequences. */
  function doubleVelocity(theta, phase, a, out, J) {
    const d = theta.length, { p, alpha, beta } = phase, { r_p, r_1 } = residuals(theta, phase, a);
    let u = Math.exp(theta[0]), before = 0, own = 0;
    for (let term = 0; term < 2; term++) {
      const n = term ? 1 : p, weight = term ? beta * r_1 : alpha * p * r_p, share = term ? beta : alpha * p * p;
      const psi = phase.psi, quotient = phase.quotient; // kept between calls
      u = Math.exp(theta[0]);
      for (let j = 0; j < d; j++) {
        const gap = j ? Math.exp(theta[j]) : 0, rise = j ? Math.expm1(gap) : 0, next = u * (1 + rise);
        const here = Math.exp(-n * next), value = next * here, slope = value * (1 - n * next); // psi and its derivative at s_j
        psi[j] = value;
        if (j === 0) {
          quotient[0] = value;
          before = slope;
        } else { // divided differences, by the product rule: of u, of exp(-n u), of their product, and of u times that
          const ofU = (u * rise) / gap, ofExp = (Math.exp(-n * u) * Math.expm1(-n * u * rise)) / gap;
          quotient[j] = ofU * here + u * ofExp;
          before = quotient[j] - n * (ofU * value + u * quotient[j]); // derivative by s_{j-1}
          own = slope - quotient[j]; // and by the logarithm of the gap
        }
        out[j] = (term ? out[j] : 0) - weight * quotient[j];
        if (J) {
          const row = j * d;
          for (let k = 0; k < d; k++) J[row + k] = (term ? J[row + k] : 0) - (k < j || k === 0 ? weight * before : 0) - (k && k === j ? (weight * own) / gap : 0);
        }
        u = next;
      }
      if (!J) continue;
      for (let k = d - 1, tail = 0; k >= 0; k--) { // every residual falls with s_k and, as part of them, with the gaps before it
        tail += psi[k];
        for (let j = 0; j < d; j++) J[j * d + k] -= share * tail * quotient[j];
      }
    }
    if (J) for (let k = 1; k < d; k++) for (let j = 0, gap = Math.exp(theta[k]); j < d; j++) J[j * d + k] *= gap;
  }

  /** Replace the d x d matrix M by its factors L U, with row pivoting. */
  function factor(M, d, pivots) {
    for (let k = 0; k < d; k++) {
      let best = k;
      for (let i = k + 1; i < d; i++) if (Math.abs(M[i * d + k]) > Math.abs(M[best * d + k])) best = i;
      pivots[k] = best;
      if (best !== k) for (let j = 0; j < d; j++) {
        const x = M[k * d + j];
        M[k * d + j] = M[best * d + j];
        M[best * d + j] = x;
      }
      for (let i = k + 1; i < d; i++) {
        const x = (M[i * d + k] /= M[k * d + k]);
        for (let j = k + 1; j < d; j++) M[i * d + j] -= x * M[k * d + j];
      }
    }
  }

  function solve(M, d, pivots, b) {
    for (let k = 0; k < d; k++) {
      const x = b[k];
      b[k] = b[pivots[k]];
      b[pivots[k]] = x;
    }
    for (let i = 1; i < d; i++) for (let j = 0; j < i; j++) b[i] -= M[i * d + j] * b[j];
    for (let i = d - 1; i >= 0; i--) {
      for (let j = i + 1; j < d; j++) b[i] -= M[i * d + j] * b[j];
      b[i] /= M[i * d + i];
    }
  }

  /** Follow one phase from theta (changed in place) until its residuals are at most phase.finished or the time is `end`; add to path. */
  function follow(theta, phase, clock, end, path) {
    const d = theta.length, vector = () => new Float64Array(d), limit = end - clock;
    const k = SUMS.map(vector), rates = vector(), stage = vector(), work = vector(), pivots = new Int32Array(d);
    const J = new Float64Array(d * d), M = new Float64Array(d * d);
    let step = 0, taken = 0, time = 0, tried = 0;
    for (;;) {
      velocity(theta, phase, work, rates, J);
      const { r_p, r_1, large, small } = residuals(theta, phase, work), a = work.slice();
      const misfit = Math.max(phase.alpha ? Math.abs(r_p) : 0, phase.beta ? Math.abs(r_1) : 0);
      const slope = a.map((x) => (phase.alpha * phase.p * r_p * power(x, phase.high) + phase.beta * r_1 * power(x, phase.low)) * (phase.double ? Math.log(x) ** 2 : 1));
      path.push({ time: clock + time, a, slope, misfit });
      const finished = phase.double && !(phase.alpha && phase.beta) ? SETTLED * (phase.alpha ? large : small) : phase.finished;
      // With exp and a tiny dose the two forces on a_1 cancel to the last digits long before the fit.
      const resting = phase.low && phase.alpha && phase.beta && phase.beta * Math.abs(r_1) < LEAST_FORCE && Math.abs(r_p) < LEAST_FORCE;
      if (misfit <= finished || time >= limit || resting) return clock + time;
      if (time > 0 && misfit < 0.01 && misfit > (phase.double ? FITTED : 0)) { // not far beyond the fit: its time is shown
        const before = path[path.length - 2];
        step = Math.min(step, (3 * misfit * taken) / Math.abs(before.misfit - misfit));
      }
      if (step === 0) step = 1e-3 / rates.reduce((most, x, j) => Math.max(most, Math.abs(j || phase.double ? x : x / theta[0])), 0);
      for (;;) {
        if (++tried > MOST_STEPS) throw new Error(`no fit after ${MOST_STEPS} steps`);
        const last = time + step >= limit;
        if (last) step = limit - time;
        for (let i = 0; i < d * d; i++) M[i] = -J[i];
        for (let j = 0; j < d; j++) M[j * d + j] += 1 / (step * GAMMA);
        factor(M, d, pivots);
        for (let s = 0; s < 6; s++) {
          stage.set(theta);
          for (let m = 0; m < s; m++) for (let j = 0; j < d; j++) stage[j] += SUMS[s][m] * k[m][j];
          velocity(stage, phase, work, k[s], null);
          for (let m = 0; m < s; m++) for (let j = 0; j < d; j++) k[s][j] += (RATES[s][m] / step) * k[m][j];
          solve(M, d, pivots, k[s]);
        }
        let error = 0; // the last stage is the difference to the solution of order 3
        for (let j = 0; j < d; j++) error = Math.max(error, Math.abs(k[5][j]) / (j || phase.double ? 1 : Math.abs(theta[0]) + 1e-12));
        error /= phase.double && misfit < FITTED ? TAIL : TOLERANCE;
        const scale = error < Infinity ? Math.min(6, Math.max(0.1, 0.9 * error ** -0.25)) : 0.1;
        if (error <= 1) {
          time = last ? limit : time + step;
          taken = step;
          for (let j = 0; j < d; j++) theta[j] = stage[j] + k[5][j];
          step *= scale;
          break;
        }
        step *= Math.min(scale, 0.9);
      }
    }
  }

  const ORDERS = {
    "baseline only": (dose) => [[2, 0]],
    "mixed": (dose) => [[1, dose]],
    "special, then baseline": (dose) => [[0, 2 * dose], [2, 0]],
    "baseline, then both": (dose) => [[2, 0], [1, dose]],
  };

  /**
   * Train from scale * (1, 1 - gap, 0.771, ...) and return { path, a, response, error, fitTime, phases }.
   * settings: gap, scale, dose, kappa (odd), d (2..10), order (a key of ORDERS), parametrization ("free", "exp" or "exp(-exp)"), end (time).
   * The weights are those of one sequence of each kind: alpha, beta = 1, dose for both, 2, 0 or 0, 2 dose for one alone.
   */
  function run({ gap, scale, dose = 1, kappa = 7, d = 10, order = "mixed", parametrization = "free", end = Infinity }) {
    const shape = SHAPE.slice(0, d), theta = new Float64Array(d), p = kappa - 1, q = kappa - 2;
    shape[1] = 1 - gap;
    const double = parametrization === "exp(-exp)";
    theta[0] = double ? Math.log(-Math.log(scale)) : scale;
    for (let j = 1; j < d; j++) {
      const distance = j === 1 ? gap : shape[j - 1] - shape[j];
      // s_j - s_{j-1} = log(u_j / u_{j-1}), and u_j - u_{j-1} = -log(a_j / a_{j-1})
      theta[j] = Math.log(double ? Math.log1p(Math.log1p(-distance / shape[j - 1]) / Math.log(scale * shape[j - 1])) : scale * distance);
    }
    const powers = parametrization === "free" ? { high: q, low: 0, double } : { high: q + 2, low: 2, double };
    const finished = FINISHED[parametrization];
    const path = [], phases = [];
    let clock = 0;
    for (const [alpha, beta] of ORDERS[order](dose)) {
      const phase = { ...powers, p, alpha, beta, finished, first: path.length, start: clock, psi: new Float64Array(d), quotient: new Float64Array(d) };
      clock = follow(theta, phase, clock, end, path);
      phases.push(phase);
    }
    const a = path[path.length - 1].a, response = Array.from({ length: 20 }, (_, lag) => 1 - residual(a, lag));
    const error = Math.max(...response.slice(1).map((m) => Math.abs(m - 1)));
    const last = phases[phases.length - 1];
    const fit = path.slice(last.first).find((point) => point.misfit <= FITTED);
    return { path, a, response, error, fitTime: fit ? fit.time : null, phases };
  }

  /** Return the entries of a run at a time, by Hermite's cubic between steps. */
  function at(result, time) {
    const path = result.path;
    let low = 0, high = path.length - 1;
    if (time >= path[high].time) return Array.from(path[high].a);
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (path[middle].time <= time) low = middle; else high = middle;
    }
    return between(path[low], path[high], time);
  }

  function between(from, to, time) {
    const h = to.time - from.time, s = h > 0 ? (time - from.time) / h : 1;
    return Array.from(from.a, (x, j) => {
      const y = to.a[j], u = h * from.slope[j], v = h * to.slope[j];
      const value = x + s * (u + s * (3 * (y - x) - 2 * u - v + s * (2 * (x - y) + u + v)));
      return Math.min(Math.max(value, Math.min(x, y)), Math.max(x, y));
    });
  }

  return { run, at, between, velocity, SHAPE, ORDERS: Object.keys(ORDERS) };
})();
