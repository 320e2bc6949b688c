"""What lies in a bucket at the end, read as the README's recovery does: without our software.

Rule: everything is looked at, whether something leads to it or not.
"""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from blake3 import blake3

if TYPE_CHECKING:
    from serving import Server

__all__ = ["Found", "look"]

_KINDS = {
    "casartifacts.json": re.compile(r"casartifacts\.json"),
    "ref": re.compile(r"refs/([0-9a-f]{64}-[0-9a-f]{32})"),
    "blob": re.compile(r"blobs/(..)/(\1[0-9a-f]{62})"),
    "manifest": re.compile(r"manifests/(..)/(\1[0-9a-f]{62})"),
    "hint": re.compile(r"hints/(..)/(\1[0-9a-f]{62})"),
}


@dataclass
class Found:
    """What was found, each of it whole.

    Attributes:
        names: Every name in the bucket.
        refs: The digests that artifact ids lead to.
        contents: The blobs of every content with a manifest.
        blobs: The size of every blob in bytes.
        wrong: What is not as it must be, in words.
    """

    names: set[str] = field(default_factory=set)
    refs: dict[str, str] = field(default_factory=dict)
    contents: dict[str, list[str]] = field(default_factory=dict)
    blobs: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def unreached_contents(self) -> set[str]:
        """Return the contents with a manifest to which no ref leads."""
        return self.contents.keys() - set(self.refs.values())

    def unreached_blobs(self) -> set[str]:
        """Return the blobs that no manifest and no ref names."""
        named = {blob for blobs in self.contents.values() for blob in blobs}
        return self.blobs.keys() - named - set(self.refs.values())


def look(server: Server, bucket: str) -> Found:
    """Read everything in a bucket."""
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=server.home,
        aws_access_key_id=server.access_key_id,
        aws_secret_access_key=server.secret_access_key,
    )
    found = Found()
    uploads = client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    found.wrong += [f"an unfinished upload: {upload}" for upload in uploads]
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        found.names |= {entry["Key"] for entry in page.get("Contents", [])}

    def read(name: str) -> tuple[str, bytes]:
        return name, client.get_object(Bucket=bucket, Key=name)["Body"].read()

    with ThreadPoolExecutor(8) as pool:
        for name, body in pool.map(read, found.names):
            _note(found, name, body)
    for digest, blobs in found.contents.items():
        if lacking := set(blobs) - found.blobs.keys():
            found.wrong.append(f"content {digest} lacks {lacking}")
    for artifact_id, digest in found.refs.items():
        if digest not in found.contents and digest not in found.blobs:
            found.wrong.append(f"{artifact_id} leads to nothing")
    client.close()
    return found


def _note(found: Found, name: str, body: bytes) -> None:
    matches = {kind: match for kind, form in _KINDS.items() if (match := form.fullmatch(name))}
    if not matches:
        found.wrong.append(f"a name that nobody gives: {name}")
        return
    (kind, match), *_ = matches.items()
    if kind == "blob":
        found.blobs[match[2]] = len(body)
        if blake3(body).hexdigest() != match[2]:
            found.wrong.append(f"{name} holds other bytes")
    elif kind == "manifest":
        head: dict[str, Any] = json.loads(body.partition(b"\n")[0])
        found.contents[match[2]] = [digest for digest, _ in head["blobs"]]
        if head["digest"] != match[2] or blake3(body[:-32]).digest() != body[-32:]:
            found.wrong.append(f"{name} is not whole")
    elif kind == "ref":
        ref: dict[str, Any] = json.loads(body)
        found.refs[match[1]] = ref["digest"]
        if ref["artifact_id"] != match[1] or not match[1].startswith(ref["digest"]):
            found.wrong.append(f"{name} belongs to {ref['artifact_id']}")
