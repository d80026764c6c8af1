"""The signatures of the explanations: help() lists every argument, and settings have one set of names and defaults."""

import dataclasses
import inspect
import typing

import pytest

from cortex_fast import Recipe, explain, smoothgrad, token_saliency
from cortex_fast.explain.recipes import RecipeSettings
from cortex_fast.explain.saliency_settings import ScoreSettings, Settings

FUNCTIONS = [function for function in map(vars(explain).get, explain.__all__) if inspect.isfunction(function)]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_every_argument_has_a_line_in_the_docstring(function):
    names = [name for name in inspect.signature(function).parameters if name != "settings"]
    unpacked = function.__annotations__.get("settings")
    settings = [] if unpacked is None else list(typing.get_args(unpacked)[0].__annotations__)
    arguments = inspect.getdoc(function).split("Args:\n")[1].split("\n\n")[0]
    listed = [line.split(":")[0].strip() for line in arguments.splitlines() if not line.startswith(" " * 8)]
    assert listed[: len(names)] == names
    assert sorted(listed[len(names) :]) == sorted(settings)


def test_settings_by_name_are_the_fields_of_recipe():
    assert set(RecipeSettings.__annotations__) == {field.name for field in dataclasses.fields(Recipe)}


@pytest.mark.parametrize("function", [smoothgrad, token_saliency])
def test_saliency_settings_have_the_functions_defaults(function):
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name != "tick":
            assert parameter.default == defaults[name], name
    assert set(ScoreSettings.__annotations__) == set(defaults) - {"item_ids"}
