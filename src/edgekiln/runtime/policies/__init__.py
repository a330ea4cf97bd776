"""Which setting keeps the deadline at the highest quality: pure decisions over frozen records.

``start(goal, ladder)`` gives a state; ``decide(state, observation)`` gives the next state and a decision.
Each policy (quality, offload, batch, burst, rate, allowance) narrows, extends or marks the plans of those
before it; ``hysteresis`` takes one of them.
"""

from edgekiln.runtime.policies.combine import POLICIES, Decision, decide
from edgekiln.runtime.policies.plan import Plan, Policy, View
from edgekiln.runtime.policies.state import State, start

__all__ = ["POLICIES", "Decision", "Plan", "Policy", "State", "View", "decide", "start"]
