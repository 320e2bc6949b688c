"""The two JSON records of format 1: golden bytes, and nothing but these bytes is accepted."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest
from blake3 import blake3
from hypothesis import example, given
from hypothesis import strategies as st

from casartifacts.chunking import ChunkerParameters
from casartifacts.errors import CorruptArtifact, StoreMismatch
from casartifacts.records import Ref, StoreRecord

if TYPE_CHECKING:
    from collections.abc import Callable

DIGEST = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"  # of b"abc"
PLACE = "a place"

REF = Ref(
    artifact_id=f"{DIGEST}-00112233445566778899aabbccddeeff",
    digest=DIGEST,
    size=3,
    filename="größe 1.pt",
    mimetype="application/octet-stream",
    encoding=None,
    uploaded_at="2026-11-01T12:00:00.000000+00:00",
    origin={"study": "mnist", "storage": "0123456789abcdef"},
)
GOLDEN_REF = (
    b'{"artifact_id":"6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85'
    b'-00112233445566778899aabbccddeeff",'
    b'"checksum":"75e78f0a97efd1d7f4cd21877bde90fb48d1b4a59b3f88148fbd34b614f73f0c",'
    b'"digest":"6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",'
    b'"encoding":null,"filename":"gr\\u00f6\\u00dfe 1.pt","format":1,'
    b'"mimetype":"application/octet-stream",'
    b'"origin":{"storage":"0123456789abcdef","study":"mnist"},'
    b'"size":3,"uploaded_at":"2026-11-01T12:00:00.000000+00:00"}\n'
)
GOLDEN_STORE = (
    b'{"checksum":"22da23e809ed90f9282e101663a20dff91038d0c2fd26dd480fde6febe53c0bf",'
    b'"chunker":{"algorithm":"fastcdc-2020","average":65536,"maximum":1048576,"minimum":32768,'
    b'"normalization":1},"digest":"blake3-256","durable":true,"format":1,'
    b'"small_content_limit":1048576}\n'
)


def decode_ref(body: bytes) -> Ref:
    return Ref.decode(body, REF.artifact_id, PLACE)


def decode_store(body: bytes) -> StoreRecord:
    return StoreRecord.decode(body, PLACE)


BOTH = pytest.mark.parametrize(
    ("decode", "golden"),
    [(decode_ref, GOLDEN_REF), (decode_store, GOLDEN_STORE)],
    ids=["ref", "casartifacts.json"],
)


def sealed(entries: dict[str, Any]) -> bytes:
    """Make the bytes of a record by the words of its specification, not by its code."""
    open_entries = {name: entry for name, entry in entries.items() if name != "checksum"}
    checksum = blake3(json.dumps(open_entries, sort_keys=True, separators=(",", ":")).encode())
    whole = {**open_entries, "checksum": checksum.hexdigest()}
    return json.dumps(whole, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def test_a_ref_has_golden_bytes() -> None:
    assert REF.encode() == GOLDEN_REF
    assert decode_ref(GOLDEN_REF) == REF


def test_the_record_of_a_store_has_golden_bytes() -> None:
    assert StoreRecord(durable=True).encode() == GOLDEN_STORE
    assert decode_store(GOLDEN_STORE) == StoreRecord(
        durable=True,
        small_content_limit=2**20,
        chunker=ChunkerParameters("fastcdc-2020", 2**15, 2**16, 2**20, 1),
        digest="blake3-256",
        format=1,
    )


@BOTH
def test_the_golden_bytes_are_as_specified(
    decode: Callable[[bytes], object], golden: bytes
) -> None:
    assert sealed(json.loads(golden)) == golden


@BOTH
def test_every_changed_byte_is_refused(decode: Callable[[bytes], object], golden: bytes) -> None:
    changed = bytearray(golden)
    for position, right in enumerate(golden):
        for wrong in {right ^ 1 << bit for bit in range(8)} | {0, 32, 48, 255} - {right}:
            changed[position] = wrong
            with pytest.raises((CorruptArtifact, StoreMismatch), match=PLACE):
                decode(bytes(changed))
        changed[position] = right


@BOTH
def test_every_truncation_and_extension_is_refused(
    decode: Callable[[bytes], object], golden: bytes
) -> None:
    truncated = [golden[:end] for end in range(len(golden))]
    extended = [golden + more for more in (b"\n", b" ", b"\0", b"}", golden)]
    extended += [more + golden for more in (b"\n", b" ", b"\xef\xbb\xbf")]
    for wrong in truncated + extended:
        with pytest.raises((CorruptArtifact, StoreMismatch), match=PLACE):
            decode(wrong)


@BOTH
@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"7", b'"x"', b"{}", b"\xff\xfe"])
def test_what_is_no_record_is_refused(
    decode: Callable[[bytes], object], golden: bytes, body: bytes
) -> None:
    with pytest.raises((CorruptArtifact, StoreMismatch), match=PLACE):
        decode(body)


@BOTH
def test_another_spelling_of_the_same_record_is_refused(
    decode: Callable[[bytes], object], golden: bytes
) -> None:
    entries = json.loads(golden)
    for spelling in (
        json.dumps(entries).encode() + b"\n",
        json.dumps(dict(reversed(entries.items())), separators=(",", ":")).encode() + b"\n",
        golden.replace(b'"format":1', b'"format":1,"format":1'),
    ):
        with pytest.raises((CorruptArtifact, StoreMismatch), match="checksum"):
            decode(spelling)


@BOTH
@pytest.mark.parametrize("number", [0, 2, -1, 10**6])
def test_another_format_says_which_it_is_and_what_to_do(
    decode: Callable[[bytes], object], golden: bytes, number: int
) -> None:
    entries = json.loads(golden) | {"format": number}
    message = rf"format {number}; this version knows format 1\. .*upgrade"
    with pytest.raises(StoreMismatch, match=message):
        decode(sealed(entries))
    # Whatever else somebody newer has changed, and however it is sealed.
    with pytest.raises(StoreMismatch, match=message):
        decode(json.dumps({"format": number, "new": []}).encode())


@BOTH
def test_unknown_and_missing_entries_are_refused(
    decode: Callable[[bytes], object], golden: bytes
) -> None:
    entries = json.loads(golden)
    with pytest.raises(StoreMismatch, match=r"'compression'.*upgrade"):
        decode(sealed(entries | {"compression": "zstd"}))
    for missing in set(entries) - {"checksum"}:
        left = {name: entry for name, entry in entries.items() if name != missing}
        with pytest.raises((CorruptArtifact, StoreMismatch), match=PLACE):
            decode(sealed(left))
    del entries["checksum"]
    with pytest.raises((CorruptArtifact, StoreMismatch), match="checksum"):
        decode(json.dumps(entries, separators=(",", ":")).encode() + b"\n")


def test_unknown_words_in_the_record_of_a_store_are_refused() -> None:
    entries = json.loads(GOLDEN_STORE)
    with pytest.raises(StoreMismatch, match=r"'sha-256'.*upgrade"):
        decode_store(sealed(entries | {"digest": "sha-256"}))
    with pytest.raises(StoreMismatch, match="salt"):
        decode_store(sealed(entries | {"chunker": entries["chunker"] | {"salt": 1}}))


@pytest.mark.parametrize(
    "change",
    [
        {"small_content_limit": -1},
        {"small_content_limit": "1"},
        *(
            {"chunker": asdict(ChunkerParameters()) | wrong}
            for wrong in (
                {"maximum": 0},
                {"minimum": "a"},
                {"minimum": 0},
                {"average": 1},
                {"maximum": 2**40},
            )
        ),
    ],
)
def test_sizes_that_no_version_writes_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(StoreMismatch, match="its sizes are"):
        decode_store(sealed(json.loads(GOLDEN_STORE) | change))


def test_a_ref_of_another_id_is_refused() -> None:
    with pytest.raises(CorruptArtifact, match=REF.artifact_id) as caught:
        Ref.decode(GOLDEN_REF, "another-id", PLACE)
    assert "'another-id'" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"digest": None},
        {"digest": "abc"},
        {"digest": DIGEST.upper()},
        {"digest": 5},
        {"size": -1},
        {"size": "1"},
        {"size": True},
        {"filename": 5},
        {"origin": []},
        {"artifact_id": None},
    ],
)
def test_a_ref_that_leads_to_no_content_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(CorruptArtifact, match="names no content"):
        decode_ref(sealed(json.loads(GOLDEN_REF) | change))


_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=20)


@given(
    artifact_id=_TEXT,
    size=st.integers(0, 2**63),
    texts=st.tuples(*[st.none() | _TEXT] * 3),
    uploaded_at=_TEXT,
    origin=st.none() | st.dictionaries(_TEXT, _TEXT, max_size=3),
)
@example(
    artifact_id="\n", size=0, texts=("\udcff", "\u2028", '"'), uploaded_at="", origin={"\0": "é"}
)
def test_every_ref_comes_back_from_its_ascii_line(
    artifact_id: str,
    size: int,
    texts: tuple[str | None, ...],
    uploaded_at: str,
    origin: dict[str, str] | None,
) -> None:
    filename, mimetype, encoding = texts
    ref = Ref(artifact_id, DIGEST, size, filename, mimetype, encoding, uploaded_at, origin)
    body = ref.encode()
    assert body.isascii()
    assert body.endswith(b"}\n")
    assert body.count(b"\n") == 1
    assert Ref.decode(body, artifact_id, PLACE) == ref
