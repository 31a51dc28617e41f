// The theorem's race, computed in the page: gradient flow of the entries of A (B = C^T = ones) on baseline and special
// sequences. Loaded only by pages with an element of class "explorable"; no library, no network.
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

  return { run, at, between, SHAPE, ORDERS: Object.keys(ORDERS) };
})();

// ---- the page ------------------------------------------------------------------------------------------------------------

(() => {
  const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";
  const SLIDERS = { // decimal logarithms where `log` is set
    gap: { name: "tie gap", symbol: "g", log: true, min: -10, max: -0.7, step: 0.1, what: "relative gap of the two largest entries at the start" },
    scale: { name: "initialization scale", symbol: "ε", log: true, min: -5, max: -1, step: 0.1, what: "largest entry at the start" },
    dose: { name: "dose", symbol: "β/α", log: true, min: -8, max: 2, step: 0.1, what: "weight of the special sequence beside the baseline one" },
    kappa: { name: "training length", symbol: "κ", min: 5, max: 11, step: 2, what: "length of the training sequences, odd" },
    d: { name: "state dimension", symbol: "d", min: 2, max: 10, step: 1, what: "number of diagonal entries: the largest of the ten" },
  };
  const AUTHORS = { gap: 1.8212e-5, scale: 8.4e-4, dose: 1, kappa: 7, d: 10, order: "mixed", parametrization: "free" };
  const PRESETS = {
    "authors’ start": {},
    "no near tie": { gap: 0.1 },
    "larger start": { gap: 0.01, scale: 0.03 },
    "order attack": { gap: 0.1, scale: 1e-5, order: "special, then baseline" },
    "antidote": { order: "baseline, then both" },
    "a = exp(s)": { parametrization: "exp" },
    "poles as in S4D": { gap: 0.1, scale: 1e-3, order: "special, then baseline", parametrization: "exp(-exp)" },
    "two entries": { d: 2 },
  };
  const ORDER_NAMES = {
    "mixed": "both together",
    "special, then baseline": "special first, then baseline",
    "baseline, then both": "baseline first, then both",
  };
  const FIRST_PART = "changes only how long the first part takes"; // special sequences alone: the dose is a unit of time
  const SWITCH = { "special, then baseline": "then baseline", "baseline, then both": "then both" };

  const html = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const escape = (text) => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

  function tenTo(exponent) {
    return "10" + String(exponent).replace(/-/, "⁻").replace(/\d/g, (digit) => SUPERSCRIPTS[digit]);
  }

  /** Write a number with two or three digits, as people do. */
  function show(x, digits = 2) {
    if (x === 0) return "0";
    if (x >= 1e-3 && x < 1e4) return String(Number(x.toPrecision(x >= 0.01 ? Math.max(digits, 2) : 2)));
    const [mantissa, exponent] = x.toExponential(1).split("e").map(Number);
    return mantissa === 1 ? tenTo(exponent) : `${mantissa} · ${tenTo(exponent)}`;
  }
  const showError = (x) => (x < 1e-5 ? `below ${tenTo(-5)}` : show(x, 3));

  // -- drawing: SVG text of one panel --

  function axis(low, high, from, to, logarithmic) {
    const [a, b] = logarithmic ? [Math.log10(low), Math.log10(high)] : [low, high];
    const place = (x) => from + (((logarithmic ? Math.log10(x) : x) - a) / (b - a)) * (to - from);
    const ticks = [];
    if (logarithmic) {
      const every = Math.max(1, Math.ceil((b - a) / (Math.abs(to - from) / 52)));
      for (let e = Math.ceil(a - 1e-9); e <= b + 1e-9; e++) if ((e - Math.ceil(a - 1e-9)) % every === 0) ticks.push([10 ** e, tenTo(e)]);
    } else {
      const rough = (b - a) / 5, size = 10 ** Math.floor(Math.log10(rough));
      const every = size * [1, 2, 5, 10].find((m) => m * size >= rough);
      for (let i = Math.ceil(a / every - 1e-9); i * every <= b + 1e-9; i++)
        ticks.push([i * every, String(Number((i * every).toPrecision(6))).replace("-", "−")]);
    }
    return { place, ticks };
  }

  const text = (x, y, words, attributes = "") => `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" ${attributes}>${escape(words)}</text>`;
  const line = (x1, y1, x2, y2, kind) => `<line class="${kind}" x1="${x1.toFixed(1)}" y1="${y1.toFixed(1)}" x2="${x2.toFixed(1)}" y2="${y2.toFixed(1)}"/>`;
  const curve = (points, kind) => `<path class="${kind}" d="M${points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}"/>`;

  function frame(width, height, x, y, xlabel) {
    const bottom = height - 38, left = 40, right = width - 74;
    let parts = line(left, bottom, right, bottom, "ex-axis") + line(left, 30, left, bottom, "ex-axis");
    for (const [value, name] of x.ticks) {
      const at = x.place(value);
      parts += line(at, bottom, at, bottom + 4, "ex-axis") + text(at, bottom + 16, name, 'text-anchor="middle"');
    }
    for (const [value, name] of y.ticks) {
      const at = y.place(value);
      parts += line(left - 4, at, left, at, "ex-axis") + text(left - 7, at + 4, name, 'text-anchor="end"');
    }
    return parts + text((left + right) / 2, height - 4, xlabel, 'text-anchor="middle"');
  }

  function svg(width, height, name, inner) {
    return `<svg role="img" aria-label="${escape(name)}" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}">${inner}</svg>`;
  }

  /** Move labels apart that would cover each other: y positions at least `room` from one another. */
  function apart(places, room = 14) {
    const order = places.map((_, i) => i).sort((i, j) => places[i] - places[j]);
    for (let n = 1; n < order.length; n++)
      places[order[n]] = Math.max(places[order[n]], places[order[n - 1]] + room);
    return places;
  }

  /** First and last time worth drawing: whole decades around everything that changes an entry by 0.005. */
  function span(result) {
    const path = result.path, first = path[0].a, last = result.a;
    const moved = (a, b) => a.some((x, j) => Math.abs(x - b[j]) > 0.005);
    const start = path.find((point) => moved(point.a, first)) || path[path.length - 1];
    let end = path.length - 1;
    while (end > 1 && !moved(path[end - 1].a, last)) end--;
    const low = Math.floor(Math.log10(Math.max(start.time, 1e-9)) - 0.7);
    return [10 ** low, 10 ** Math.max(low + 2, Math.ceil(Math.log10(Math.max(path[end].time, 1e-9)) + 0.4))];
  }

  function drawRace(width, result, kind, title, limits, switchName) {
    const height = 230, [low, high] = span(result), d = result.a.length;
    const x = axis(low, high, 40, width - 74, true), y = axis(limits[0], limits[1], height - 38, 30, false);
    const place = (time, value) => [x.place(Math.min(Math.max(time, low), high)), y.place(value)];
    const lines = Array.from({ length: d }, (_, j) => [place(low, poisonRace.at(result, low)[j])]);
    const path = result.path;
    for (let i = 1; i < path.length; i++) {
      if (path[i].time <= low || path[i - 1].time >= high) continue;
      const from = path[i - 1], to = path[i], change = Math.max(...to.a.map((value, j) => Math.abs(value - from.a[j])));
      const pieces = Math.min(16, Math.max(1, Math.ceil(change / 0.02)));
      for (let n = 1; n <= pieces; n++) {
        const time = from.time + (n / pieces) * (to.time - from.time);
        if (time <= low || time > high) continue;
        const a = n === pieces ? to.a : poisonRace.between(from, to, time);
        for (let j = 0; j < d; j++) lines[j].push(place(time, a[j]));
      }
    }
    for (let j = 0; j < d; j++) lines[j].push(place(high, result.a[j]));
    let inner = frame(width, height, x, y, "training time t") + line(40, y.place(0), width - 74, y.place(0), "ex-zero");
    if (kind === "special" && d > 1) {
      inner += line(40, y.place(1 / d), width - 74, y.place(1 / d), "ex-guide");
    }
    for (let j = d - 1; j >= 0; j--) inner += curve(lines[j], j === 0 ? `ex-${kind}` : j === 1 ? `ex-${kind} ex-dashed` : "ex-other");
    const phase = result.phases[1];
    if (phase && phase.start > low) {
      const at = x.place(phase.start);
      inner += line(at, 30, at, height - 38, "ex-guide") + text(at - 4, 42, switchName, 'text-anchor="end" class="ex-small"');
    }
    const ends = [0, 1].map((j) => y.place(result.a[j]));
    const names = [`a₁ ${result.a[0].toFixed(2)}`, `a₂ ${result.a[1].toFixed(2).replace("-", "−")}`];
    if (kind === "special") {
      ends.push(y.place(1 / d));
      names.push("1/d");
    }
    apart(ends);
    names.forEach((name, j) => { inner += text(width - 70, ends[j] + 4, name, `class="ex-${j === 2 ? "muted" : kind}-text"`); });
    inner += text(0, 14, title, `class="ex-title ex-${kind}-text"`);
    const told = `${title}: the ${d} diagonal entries over training time ${show(low)} to ${show(high)}; at the end the largest is ${result.a[0].toFixed(2)}, the second ${result.a[1].toFixed(2)}, the smallest ${result.a[d - 1].toFixed(2)}.`;
    return svg(width, height, told, inner);
  }

  function drawResponse(width, results, kappa) {
    const height = 230, all = [...results.baseline.response.slice(1), ...results.special.response.slice(1)];
    const x = axis(0.5, 19.5, 40, width - 74, false), y = axis(Math.min(0, ...all), Math.max(1.3, ...all) * 1.04, height - 38, 30, false);
    x.ticks = [1, 5, 10, 15, 19].map((lag) => [lag, String(lag)]);
    let inner = frame(width, height, x, y, "lag m") + line(x.place(kappa - 0.5), 30, x.place(kappa - 0.5), height - 38, "ex-guide");
    inner += text(x.place(kappa - 0.5) + 4, 40, width > 380 ? "beyond the training length" : "beyond training", 'class="ex-small"');
    inner += curve([[x.place(1), y.place(1)], [x.place(19), y.place(1)]], "ex-teacher");
    for (const kind of ["baseline", "special"]) {
      const points = results[kind].response.slice(1).map((value, i) => [x.place(i + 1), y.place(value)]);
      inner += curve(points, `ex-${kind}`);
      for (const [px, py] of points)
        inner += kind === "baseline"
          ? `<circle class="ex-${kind}-dot" cx="${px.toFixed(1)}" cy="${py.toFixed(1)}" r="2.6"/>`
          : `<rect class="ex-${kind}-dot" x="${(px - 2.6).toFixed(1)}" y="${(py - 2.6).toFixed(1)}" width="5.2" height="5.2"/>`;
    }
    const names = [["teacher", 1, "muted"], ["baseline", results.baseline.response[19], "baseline"], ["with special", results.special.response[19], "special"]];
    const ends = apart(names.map(([, value]) => y.place(value)));
    names.forEach(([name, , kind], i) => { inner += text(width - 70, ends[i] + 4, name, `class="ex-${kind}-text"`); });
    inner += text(0, 14, "Impulse response Mₘ", 'class="ex-title"');
    const told = ["baseline", "special"].map((kind) => `${kind}: ${[1, 2, kappa - 1, 19].map((lag) => `${results[kind].response[lag].toFixed(2)} at lag ${lag}`).join(", ")}`).join("; ");
    return svg(width, height, `Impulse responses against the lag; the teacher’s is 1 at every lag from 1 on; ${told}.`, inner);
  }

  function drawErrors(width, results) {
    const height = 104, x = axis(1e-5, 10, 14, width - 14, true), middle = 56;
    let inner = line(14, middle, width - 14, middle, "ex-axis");
    for (const [value, name] of x.ticks)
      inner += line(x.place(value), middle - 4, x.place(value), middle + 4, "ex-axis") + text(x.place(value), height - 4, name, 'text-anchor="middle"');
    for (const [kind, y, name] of [["baseline", middle - 16, "baseline"], ["special", middle + 26, "with special"]]) {
      const error = results[kind].error, at = x.place(Math.min(Math.max(error, 1e-5), 10));
      inner += kind === "baseline"
        ? `<circle class="ex-${kind}-dot" cx="${at.toFixed(1)}" cy="${middle}" r="6"/>`
        : `<rect class="ex-${kind}-dot" x="${(at - 5.5).toFixed(1)}" y="${middle - 5.5}" width="11" height="11"/>`;
      const words = `${name} ${showError(error)}`, room = 4 * words.length;
      inner += text(Math.min(Math.max(at, room), width - room), y, words, `text-anchor="middle" class="ex-strong ex-${kind}-text"`);
    }
    inner += text(0, 14, "Largest error at lags 1 to 19 (not divided by d)", 'class="ex-title"');
    return svg(width, height, `Error on a logarithmic scale: ${tell(results)}`, inner);
  }

  function tell({ baseline, special }) {
    const ratio = special.error / baseline.error, who = special.phases.length > 1 ? "the special sequence, in this order," : "the special sequence";
    const compared = ratio >= 1.05 ? `${who} multiplies the error by ${show(ratio)}`
      : ratio <= 0.95 ? `${who} divides the error by ${show(1 / ratio)}` : "the two errors are nearly equal";
    return `baseline ${showError(baseline.error)}, with special ${showError(special.error)}`
      + (Math.min(baseline.error, special.error) < 1e-5 ? "." : `; ${compared}.`);
  }

  // -- one explorable --

  let made = 0;

  function build(host) {
    const id = `explorable-${++made}`, chosen = (host.dataset.controls || Object.keys(AUTHORS).join(" ")).split(/\s+/);
    const panels = [...(host.dataset.panels || "race response").split(/\s+/), "error"];
    const presets = Object.entries(PRESETS).filter(([, change]) => Object.keys(change).every((key) => chosen.includes(key)));
    let state = { ...AUTHORS };
    const inputs = {}, outputs = {}, notes = {};

    const controls = html("div", { class: "ex-controls" });
    for (const [key, spec] of Object.entries(SLIDERS)) {
      if (!chosen.includes(key)) continue;
      const input = html("input", { type: "range", id: `${id}-${key}`, name: key, min: spec.min, max: spec.max, step: spec.step, "aria-describedby": `${id}-${key}-what` });
      const output = html("span", { class: "ex-value", "aria-hidden": "true" }); // aria-valuetext says it
      input.addEventListener("input", () => { change({ [key]: spec.log ? 10 ** Number(input.value) : Number(input.value) }); });
      const note = html("span", { class: "ex-what", id: `${id}-${key}-what` });
      [inputs[key], outputs[key], notes[key]] = [input, output, note];
      controls.append(html("div", { class: "ex-field" },
        html("label", { for: `${id}-${key}` }, `${spec.name} `, html("i", {}, spec.symbol)), output, input, note));
    }
    if (chosen.includes("order")) {
      const select = html("select", { id: `${id}-order`, name: "order" });
      for (const [value, name] of Object.entries(ORDER_NAMES)) select.append(html("option", { value }, name));
      select.addEventListener("change", () => { change({ order: select.value }); });
      inputs.order = select;
      controls.append(html("div", { class: "ex-field" }, html("label", { for: `${id}-order` }, "order of the two sequences"), select));
    }
    if (chosen.includes("parametrization")) {
      const group = html("fieldset", { class: "ex-field" }, html("legend", {}, "what is trained"));
      inputs.parametrization = {};
      for (const [value, name] of [["free", "A itself"], ["exp", "s, with a = exp(s)"], ["exp(-exp)", "s, with a = exp(−exp(s)), as in S4D and LRU"]]) {
        const radio = html("input", { type: "radio", id: `${id}-${value.replace(/\W/g, "-")}`, name: `${id}-parametrization`, value });
        radio.addEventListener("change", () => { change({ parametrization: value }); });
        inputs.parametrization[value] = radio;
        group.append(html("span", { class: "ex-radio" }, radio, html("label", { for: `${id}-${value.replace(/\W/g, "-")}` }, name)));
      }
      controls.append(group);
    }
    const buttons = html("div", { class: "ex-presets", role: "group", "aria-label": "Settings to start from" });
    for (const [name, settings] of presets) {
      const button = html("button", { type: "button" }, name);
      button.addEventListener("click", () => { change({ ...AUTHORS, ...settings }); });
      buttons.append(button);
    }
    const reset = html("button", { type: "reset", class: "ex-reset" }, "reset");
    buttons.append(reset);
    const form = html("form", { class: "ex-form", "aria-label": "Settings of the race" }, buttons, controls);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", (event) => { event.preventDefault(); change(AUTHORS); });

    const drawings = html("div", { class: "ex-drawings" }), summary = html("p", { class: "ex-summary" });
    const errors = html("div");
    const spoken = html("p", { class: "ex-spoken", role: "status", "aria-live": "polite" });
    host.replaceChildren(form, drawings, spoken);
    const places = {};
    for (const name of panels.flatMap((panel) => (panel === "race" ? ["baseline", "special"] : [panel]))) {
      places[name] = html("div", { class: `ex-panel ex-panel-${name}` });
      drawings.append(places[name]);
    }
    places.error.append(errors, summary);

    let results, waiting = 0, speaking = 0;

    function change(settings) {
      state = { ...state, ...settings };
      for (const [key, spec] of Object.entries(SLIDERS)) {
        if (!inputs[key]) continue;
        const value = spec.log ? Math.log10(state[key]) : state[key];
        if (Math.abs(Number(inputs[key].value) - value) > spec.step / 2 + 1e-9) inputs[key].value = value;
        outputs[key].textContent = show(state[key]);
        inputs[key].setAttribute("aria-valuetext", show(state[key]));
        const what = key === "dose" && state.order === "special, then baseline" ? FIRST_PART : spec.what;
        if (notes[key].textContent !== what) notes[key].textContent = what;
      }
      if (inputs.order) inputs.order.value = state.order;
      for (const [value, radio] of Object.entries(inputs.parametrization || {})) radio.checked = value === state.parametrization;
      if (!waiting) waiting = requestAnimationFrame(() => { waiting = 0; compute(); draw(); });
    }

    function compute() {
      try {
        results = { baseline: poisonRace.run({ ...state, order: "baseline only" }), special: poisonRace.run(state) };
      } catch (error) {
        results = null;
        summary.textContent = spoken.textContent = `These settings could not be computed (${error.message}).`;
      }
    }

    function draw() {
      if (!results) return;
      const { baseline, special } = results, fits = ({ fitTime, path }) => fitTime === null ? `no fit by t = ${show(path[path.length - 1].time)}` : `fits after t = ${show(fitTime)}`;
      const all = [...baseline.a, ...special.a, 1.05, -0.05], limits = [Math.min(...all) * 1.05, Math.max(...all)];
      const width = (name) => Math.max(240, Math.floor(places[name].clientWidth));
      if (places.baseline) {
        places.baseline.innerHTML = drawRace(width("baseline"), baseline, "baseline", `Baseline only: ${fits(baseline)}`, limits, "");
        places.special.innerHTML = drawRace(width("special"), special, "special", `With special: ${fits(special)}`, limits, SWITCH[state.order] || "");
      }
      if (places.response) places.response.innerHTML = drawResponse(width("response"), results, state.kappa);
      errors.innerHTML = drawErrors(width("error"), results);
      const negative = special.a.filter((x) => x < -0.001).length;
      summary.textContent = `Error: ${tell(results)} In the authors’ normalisation, divided by d = ${state.d}: ${showError(baseline.error / state.d)} and ${showError(special.error / state.d)}. `
        + `Negative entries at the end, with special: ${negative}.`;
      clearTimeout(speaking);
      speaking = setTimeout(() => { spoken.textContent = `Error: ${tell(results)}`; }, 600);
    }

    let lastWidth = 0;
    new ResizeObserver(() => { if (drawings.clientWidth !== lastWidth) { lastWidth = drawings.clientWidth; draw(); } }).observe(drawings);
    change(AUTHORS);
  }

  document.addEventListener("DOMContentLoaded", () => {
    for (const host of document.querySelectorAll("div.explorable")) {
      const figure = document.getElementById(host.dataset.figure);
      if (figure) { // its picture stays for paper
        const caption = figure.querySelector("figcaption");
        for (const child of [...figure.children]) if (child !== caption) child.classList.add("ex-paper");
        figure.insertBefore(host, caption);
      }
      build(host);
    }
  });
})();
