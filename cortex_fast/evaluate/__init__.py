"""The evaluation: the paper's tables by independent judges, and beyond the paper a causal test and grounding."""

from cortex_fast.evaluate.editing import EditLead, EditScores, edit_lead, edit_scores
from cortex_fast.evaluate.grounding import Grounding, grounding, object_cells
from cortex_fast.evaluate.intervention import ARMS, Intervention, intervention
from cortex_fast.evaluate.judging import correct, of_class, probabilities
from cortex_fast.evaluate.masking import ConceptMasking, MaskingCurves, concept_level, image_level

__all__ = [
    "ARMS",
    "ConceptMasking",
    "EditLead",
    "EditScores",
    "Grounding",
    "Intervention",
    "MaskingCurves",
    "concept_level",
    "correct",
    "edit_lead",
    "edit_scores",
    "grounding",
    "image_level",
    "intervention",
    "object_cells",
    "of_class",
    "probabilities",
]
