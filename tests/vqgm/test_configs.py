"""Configurations: references are resolved as by OmegaConf, or refused with the file, the key and the reason."""

import re

import pytest

from cortex_fast.vqgm import CheckpointError
from cortex_fast.vqgm.configs import read_config


def read(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "model.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return read_config(path)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("'${size}'", 256),
        ("'${ sizes.small }'", 64),
        ("'${.beside}'", "here"),
        ("'${..size}'", 256),
        ("'${list[1]}'", 20),
        ("'${list.2.deep}'", "end"),
        ("'${sizes.${which}}'", 64),
        ("'${${name}}'", 256),
        ("'${chain}'", 256),
        ("'${nested.small}'", 64),
        ("'f${size}-${which}'", "f256-small"),
        ("'${rate}'", 4.5e-06),
        ("'${flag}'", True),
        ("'${nothing}'", None),
        ("'${list_of}'", [256, "small", [64]]),
        ("[1, '${size}']", [1, 256]),
        ("'\\${size}'", "${size}"),
        ("'no reference'", "no reference"),
    ],
)
def test_references_as_omegaconf_resolves_them(tmp_path, value, expected):
    text = f"""
size: 256
sizes: {{small: 64}}
nested: ${{sizes}}
which: small
name: size
chain: ${{other}}
other: ${{size}}
rate: 4.5e-06
flag: true
nothing: null
list: [10, 20, {{deep: end}}]
list_of: ['${{size}}', '${{which}}', ['${{sizes.small}}']]
part: {{beside: here, value: {value}}}
"""
    assert read(tmp_path, text)["part"]["value"] == expected


def test_a_part_may_be_a_reference(tmp_path):
    config = read(tmp_path, "model: {params: '${sizes}', more: {a: 1}}\nsizes: {a: '${b}', list: ['${..a}', 3]}\nb: 7")
    assert dict(config["model"]["params"]) == {"a": 7, "list": [7, 3]}
    assert dict(config["model"]["more"]) == {"a": 1} and len(config["model"]) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {b: '${oc.env:HOME}'}", "a.b: the interpolation ${oc.env:HOME} calls a resolver"),
        ("a: {b: '${now:%Y-%m-%d}'}", "a.b: the interpolation ${now:%Y-%m-%d} calls a resolver"),
        ("a: {b: '${c.d}'}\nc: {e: 1}", "a.b: the interpolation ${c.d} names no key"),
        ("a: {b: '${c.d}'}\nc: 3", "a.b: the interpolation ${c.d} names no key"),
        ("a: {b: '${c[5]}'}\nc: [1]", "a.b: the interpolation ${c[5]} names no key"),
        ("a: {b: '${...c}'}\nc: 1", "a.b: the interpolation ${...c} names no key"),
        ("a: {b: '${}'}", "a.b: the interpolation ${} names no key"),
        ("a: {b: '${a.b}'}", "a.b: the interpolation ${a.b} leads back to itself"),
        ("a: {b: '${c}'}\nc: '${d}'\nd: '${a.b}'", "leads back to itself (c -> d -> a.b -> c)"),
        ("a: {b: '${c}'}\nc: ['${c}']", "the interpolation ${c} leads back to itself"),
        ("a: {b: 'x${c}'}\nc: {d: 1}", "a.b: the interpolation ${c} is no text"),
        ("a: {b: '${c'}\nc: 1", "a.b: the interpolation in '${c' cannot be read"),
        ("a: {b: '???'}", "a.b: expected a value, got ???"),
        ("a: {b: &x [*x]}", "nested too deeply"),
        (
            "a: {b: '${l0}'}\n"
            + "\n".join(f"l{n}: [{', '.join([chr(39) + '${l' + str(n + 1) + '}' + chr(39)] * 9)}]" for n in range(9))
            + "\nl9: 1",
            "grow without end",
        ),
    ],
)
def test_references_that_cannot_be_resolved_are_named(tmp_path, text, message):
    config = read(tmp_path, text)
    with pytest.raises(CheckpointError, match=rf"model\.yaml: .*{re.escape(message)}"):
        config["a"]["b"]


def test_unread_values_may_refer_to_anything(tmp_path):
    config = read(tmp_path, "a: {b: 1, c: '${oc.env:NOWHERE}', d: '???'}")
    assert config["a"]["b"] == 1 and set(config["a"]) == {"b", "c", "d"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "expected a mapping, got list"),
        ("", "expected a mapping, got NoneType"),
        ("just text", "expected a mapping, got str"),
        ("a: [", "not a YAML file"),
        ("a: 2021-99-99", "not a YAML file"),
        ("? [1]\n: 2", "not a YAML file"),
        ("a: !!python/object/apply:os.system [true]", "not a YAML file"),
        (b"a: \xff\xfe\xfa", "not a YAML file"),
        ("a: " + "[" * 20_000, "nested too deeply"),
        ("a: " + "{b: " * 20_000, "nested too deeply"),
    ],
)
def test_other_files_are_named(tmp_path, text, message):
    with pytest.raises(CheckpointError, match=rf"model\.yaml: .*{message}"):
        read(tmp_path, text)


def test_text_is_utf_8(tmp_path):
    assert read(tmp_path, "# é\nname: grün")["name"] == "grün"
    assert read(tmp_path, "name: grün", "utf-8-sig")["name"] == "grün"
