"""What scores a completion: verifiers, formats, constraints, programs, reward models, and their composition.

A :class:`Composition` is made from the spec's ``rewards`` and scores :class:`Rollout` objects. A component's score is a
number, or ``None`` if it could not answer; then the rollout is unscored, never zero. Files by concept: ``answers``
(where the answer is; texts and numbers, read by ``quantities``), ``mathematics`` (equivalence, in processes of its own),
``formats``, ``constraints`` (IFEval's ``instructions``), ``length``, ``programs`` (code in the sandbox), ``models``.

What a policy writes is hostile input: whatever runs on it has a limit of time, and none of it is evaluated here.
"""

from worker.rewards.composition import Composition, Measured, Scores, combine
from worker.rewards.rollouts import Rollout, Score

__all__ = ["Composition", "Measured", "Rollout", "Score", "Scores", "combine"]
