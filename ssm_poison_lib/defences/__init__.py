"""What can be done against clean-label poison: before, during and after training, and by its rules.

`before` needs the training set alone, `during` a gradient or the losses along the way, `after` what
was trained; `rules` are ways to train. `existing` holds detectors of other packages as baselines. A
detector gives each sequence a score, larger where it is more suspicious, or says which are clean:
one truth value a row, True = clean, in the order of the rows, as `detect_poison` of the Adversarial
Robustness Toolbox does.
"""
