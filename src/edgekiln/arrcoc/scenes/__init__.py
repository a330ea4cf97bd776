"""Scenes to train and to judge on: photographs from packages, small coloured digits, questions about them."""

from edgekiln.arrcoc.scenes.generate import Scene, questions_about, relevance_target, scene, scenes
from edgekiln.arrcoc.scenes.questions import Glyph, Question

__all__ = ["Glyph", "Question", "Scene", "questions_about", "relevance_target", "scene", "scenes"]
