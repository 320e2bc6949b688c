"""Names of format 1, and which ids are refused."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casartifacts import names

DIGEST = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"
UUID4 = "0f8fad5b-d9cb-469f-a165-70867728950e"
OURS = f"{DIGEST}-00112233445566778899aabbccddeeff"

# Another letter to everybody but `casefold`, and to some file systems.
LONG_S = "\N{LATIN SMALL LETTER LONG S}"

# Ids made of what could lead astray.
_PARTS = st.sampled_from(
    [
        *names.FOLDERS,
        "REFS",
        "Tmp",
        f"ref{LONG_S}",
        "..",
        ".",
        "",
        "C:",
        "c:x",
        "~",
        "a",
        UUID4,
        "\0",
        "é",
    ]
)
IDS = st.one_of(
    st.text(max_size=40),
    st.text("aé", min_size=120, max_size=140),
    st.builds("".join, st.lists(st.one_of(_PARTS, st.sampled_from("/\\-")), max_size=7)),
)


def _refusal(artifact_id: str) -> str | None:
    try:
        names.check_artifact_id(artifact_id)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("artifact_id", "name"),
    [
        (OURS, f"refs/{OURS}"),
        (UUID4, f"refs/{UUID4}"),
        ("best-model_1", "refs/best-model_1"),
        ("a" * 128, "refs/" + "a" * 128),
        (
            "a" * 129,
            "refs/~1431d92bd2d292bbd1dd48fbbf133168c9a84425d5e0e0aa24ced8fe934fe664",
        ),
        ("Best", "refs/~35ebc2661286b6ca57793191aeb369c4752d5a02de4c194adf8cd28414e921ac"),
        ("a.b", "refs/~08b918584a9f4bcee035d426d3ec44286c7f0388ecd195b8023b85e806a5215d"),
        ("~x", "refs/~d307c751535ed173815cf857ec6d56c5ab7ee6527be42224b31b80065993a0e9"),
        ("größe", "refs/~18ee8410aad45f21775ef9ba39844567baf1632cfae54ed5b1a281200414275a"),
        (
            f"optuna/{UUID4}",
            "refs/~08054ca71331d2143ff457ccdbe511b30bc46768fb7fb44355960b78d1cc00e9",
        ),
    ],
)
def test_refs_have_golden_names(artifact_id: str, name: str) -> None:
    assert names.ref(artifact_id) == name
    assert names.trashed_ref(artifact_id) == f"trash/{name}"


def test_everything_else_has_golden_names() -> None:
    assert names.STORE_RECORD == "casartifacts.json"
    assert names.blob(DIGEST) == f"blobs/64/{DIGEST}"
    assert names.manifest(DIGEST) == f"manifests/64/{DIGEST}"
    assert names.trashed("7", names.blob(DIGEST)) == f"trash/7/blobs/64/{DIGEST}"


@given(IDS, IDS)
def test_every_id_is_refused_or_has_a_plain_name_of_its_own_whatever_the_case(
    one: str, other: str
) -> None:
    refusal = _refusal(one)
    if refusal is not None:
        assert refusal.startswith(f"Invalid artifact_id: {one!r} (")
        return
    assert re.fullmatch(r"refs/([0-9a-z_-]{1,128}|~[0-9a-f]{64})", names.ref(one))
    if one != other and _refusal(other) is None:
        assert names.ref(one).casefold() != names.ref(other).casefold()


@pytest.mark.parametrize(
    ("artifact_id", "reason"),
    [
        ("", "it is empty"),
        ("/etc/passwd", "it is an absolute path"),
        ("\\\\server\\share", "it is an absolute path"),
        ("C:\\x", "it is an absolute path"),
        ("c:x", "it is an absolute path"),
        ("..", "it contains '..'"),
        ("a/../../b", "it contains '..'"),
        ("a\\..\\b", "it contains '..'"),
        (".", "it has an empty or '.' component"),
        ("./x", "it has an empty or '.' component"),
        ("x/", "it has an empty or '.' component"),
        ("a//b", "it has an empty or '.' component"),
        ("a\\.\\b", "it has an empty or '.' component"),
        ("a\0b", "it contains a NUL character"),
        ("a" * 1025, "it has 1025 bytes, at most 1024 are allowed"),
        ("é" * 513, "it has 1026 bytes, at most 1024 are allowed"),
        ("a\ud800", "it is no valid Unicode"),
        (7, "it must be a str"),
        (None, "it must be a str"),
        (b"x", "it must be a str"),
    ],
)
def test_an_id_is_refused_with_its_reason(artifact_id: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"^Invalid artifact_id: ") as caught:
        names.check_artifact_id(artifact_id)
    assert reason in str(caught.value)


@pytest.mark.parametrize("folder", sorted(names.FOLDERS))
@pytest.mark.parametrize("form", ["{}", "{}/x", "x/{}", "x\\{}\\y"])
def test_the_name_of_a_folder_of_ours_is_refused_in_every_case(folder: str, form: str) -> None:
    for spelling in (folder, folder.upper(), folder.title(), folder.replace("s", LONG_S)):
        assert _refusal(form.format(spelling))
    assert not _refusal(form.format(f"{folder}-1"))


def test_ids_of_the_greatest_length_and_of_other_clients_are_accepted() -> None:
    for artifact_id in ("a" * 1024, "é" * 512, UUID4, f"optuna/{UUID4}", OURS, "Größe 1.pt", "~"):
        names.check_artifact_id(artifact_id)


def test_ids_that_we_make_are_fresh_and_name_their_content() -> None:
    made = {names.new_artifact_id(DIGEST) for _ in range(100)}
    assert len(made) == 100
    for artifact_id in made:
        assert re.fullmatch(r"[0-9a-f]{64}-[0-9a-f]{32}", artifact_id)
        assert names.digest_in(artifact_id) == DIGEST
        names.check_artifact_id(artifact_id)


@pytest.mark.parametrize(
    ("artifact_id", "digest", "written_once"),
    [
        (OURS, DIGEST, True),
        (UUID4, None, True),
        (f"optuna/{UUID4}", None, True),
        (f"study-3-{UUID4}", None, True),
        ("best-model", None, False),
        (UUID4.replace("-4", "-1"), None, False),  # made from a clock, not from chance
        (OURS.upper(), None, False),
        (f"x{OURS}", None, False),
        (f"{OURS}\n", None, False),
        (f"{UUID4}\n", None, False),
        (DIGEST, None, False),
    ],
)
def test_only_random_ids_count_as_written_once(
    artifact_id: str, *, digest: str | None, written_once: bool
) -> None:
    assert names.digest_in(artifact_id) == digest
    assert names.is_written_once(artifact_id) is written_once
