"""Refs: NAME, NAME@VERSION and NAME@LABEL are told apart, and everything else is refused."""

import pytest

from arstore.store.artifacts.refs import (
    LABEL_MAX_BYTES,
    NAME_MAX_BYTES,
    Ref,
    label_objects,
    parse_new_ref,
    parse_ref,
    split_object,
)
from arstore.store.errors import BadInput


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("org/model-1.5_b", Ref("org/model-1.5_b")),
        ("model@7", Ref("model", version=7)),
        ("model@4294967295", Ref("model", version=(1 << 32) - 1)),
        ("model@v7", Ref("model", label="v7")),
        ("n" * NAME_MAX_BYTES + "@" + "l" * LABEL_MAX_BYTES, Ref("n" * NAME_MAX_BYTES, label="l" * LABEL_MAX_BYTES)),
    ],
)
def test_a_ref_is_a_name_and_a_number_or_a_label(text: str, ref: Ref) -> None:
    assert parse_ref(text) == ref


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@1",
        "model@",
        "model@0",
        "model@4294967296",
        "model@a@b",
        "a name",
        "näme",
        "n" * (NAME_MAX_BYTES + 1),
        "model@" + "l" * (LABEL_MAX_BYTES + 1),
    ],
)
def test_what_is_no_ref_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        parse_ref(text)


def test_a_new_version_takes_a_label_and_no_number() -> None:
    assert parse_new_ref("model@stable") == Ref("model", label="stable")
    with pytest.raises(BadInput, match="use a label"):
        parse_new_ref("model@3")


def test_the_id_of_an_object_is_split_at_its_last_number() -> None:
    assert split_object("model@12") == ("model", 12)
    for whole in ("model", "model@stable", "@12", "4f5e0a"):
        assert split_object(whole) == (whole, None)


def test_an_object_is_called_by_its_name_alone_unless_two_versions_are_here() -> None:
    assert label_objects(["a@1", "b@1", "b@2", "4f5e"]) == {"a@1": "a", "b@1": "b@1", "b@2": "b@2", "4f5e": "4f5e"}
    assert label_objects(["a@1", "a@1"]) == {"a@1": "a"}
