"""The sealed log for everybody: checkpoint, tiles (C2SP tlog-tiles) and consistency proofs; proofs of records for the
backend that they belong to."""

import logging
import re
from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse

from audit import logtree, search
from audit.models import Checkpoint, Log, Record
from governance import schema
from governance.answers import text
from governance.api import BackendView, invalid_parameter, json_response, parameter
from governance.problems import Problem, overloaded
from muniment import tiles
from muniment.merkle import HASH_BYTES
from muniment.notes import NoteError

logger = logging.getLogger(__name__)

UNCACHED = {"Cache-Control": "no-store"}
# What has been in the tree stays there: the prefix of a tile that is served once never changes.
FOR_EVER = {"Cache-Control": "public, max-age=31536000, immutable"}
SIZE = re.compile(r"[0-9]{1,15}")
RECORD = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class LogView(BackendView):
    """A view that reads the sealed log."""

    METHODS = frozenset({"GET", "HEAD"})

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """As for every view of the API; a damaged tree is an outage, not a fault of the call."""
        try:
            return super().dispatch(request, *args, **kwargs)
        except (tiles.TileMissing, NoteError) as error:
            logger.error("the sealed log is damaged: %s", error)
            return overloaded("The sealed tree cannot be read at the moment.").response()


class CheckpointView(LogView):
    """GET /v1/log/checkpoint: the newest signed tree head (C2SP tlog-checkpoint)."""

    @schema.log_checkpoint
    def get(self, request: HttpRequest, number: int | None = None) -> HttpResponse:
        """The note as the sealer signed it, with the cosignatures of witnesses."""
        _, checkpoint = sealed(number)
        return HttpResponse(
            logtree.with_cosignatures(checkpoint), content_type="text/plain; charset=utf-8", headers=UNCACHED
        )


class TileView(LogView):
    """GET /v1/log/tile/...: the hashes of the tree (C2SP tlog-tiles). What was hashed is not public, so that there are
    no entry bundles."""

    @schema.log_tile
    def get(self, request: HttpRequest, tile: str, number: int | None = None) -> HttpResponse:
        """A full tile, or the first hashes of one: as many as the path says."""
        try:
            level, index, width = tiles.parse(tile)
        except ValueError:
            raise no_tile() from None
        log, checkpoint = sealed(number)
        if index * tiles.WIDTH + width > checkpoint.size >> 8 * level:
            raise no_tile()
        found = logtree.hashes(log, level, index)[: width * HASH_BYTES]
        if len(found) < width * HASH_BYTES:
            raise tiles.TileMissing(level, index)
        return HttpResponse(found, content_type="application/octet-stream", headers=FOR_EVER)


class ConsistencyView(LogView):
    """GET /v1/log/proof/consistency: that an older tree is a prefix of a newer one (RFC 9162 section 2.1.4)."""

    @schema.log_consistency
    def get(self, request: HttpRequest, number: int | None = None) -> HttpResponse:
        """For any two sizes up to that of the newest checkpoint."""
        log, checkpoint = sealed(number)
        words = f"a size, 1 to {checkpoint.size}, and `from` not above `to`"
        first, size = (int(parameter(request, name, SIZE, words)) for name in ("from", "to"))
        if not 1 <= size <= checkpoint.size:
            raise invalid_parameter("to", words)
        if not 1 <= first <= size:
            raise invalid_parameter("from", words)
        path = logtree.tree(log, size, [first - 1]).consistency(first)
        return json_response({"log": log.number, "from": first, "to": size, "path": [text(node) for node in path]})


class InclusionView(LogView):
    """GET /v1/log/proof/inclusion: that a record is in the tree (RFC 9162 section 2.1.3, C2SP tlog-proof)."""

    @schema.log_inclusion
    def get(self, request: HttpRequest) -> HttpResponse:
        """For the backend's own records; another's is answered like none."""
        backend = self.backend(request)
        record = search.by_id(UUID(parameter(request, "record", RECORD, "the id of a record, a UUID")))
        if record is None or record.backend != backend.slug:
            raise Problem(404, "record-unknown", "No such record", "This backend has no record with this id.")
        try:
            return json_response(proven(record))
        except logtree.NotSealed:
            raise not_sealed_yet("No checkpoint has this record yet.") from None


def proven(record: Record) -> dict[str, Any]:
    """A record's proof in JSON, and as the text of a .tlog-proof file. Raises NotSealed."""
    log = logtree.log_of(record.index)
    checkpoint = logtree.telling(log, record.index - log.start) if log else None
    if log is None or checkpoint is None:
        raise logtree.NotSealed("no checkpoint has the record")
    proof = logtree.proof_of(record, checkpoint)
    return {
        "record": str(record.id),
        "index": record.index,
        "log": log.number,
        "leaf_index": proof.index,
        "size": checkpoint.size,
        "leaf": text(bytes(record.leaf)),
        "path": [text(node) for node in proof.path],
        "checkpoint": proof.checkpoint,
        "tlog_proof": proof.encode(),
    }


def sealed(number: int | None) -> tuple[Log, Checkpoint]:
    """A log, the current one where none is named, and its newest checkpoint. Raises a 404 Problem."""
    if number is None:
        log = logtree.current()
    else:
        log = Log.objects.filter(number=number).first() if number < 2**15 else None
        if log is None:
            raise Problem(404, "not-found", "Not found", "There is no log of this number.", headers=UNCACHED)
    checkpoint = logtree.newest(log) if log else None
    if log is None or checkpoint is None:
        raise not_sealed_yet("The log has no checkpoint yet.")
    return log, checkpoint


def not_sealed_yet(detail: str) -> Problem:
    """It is there, or will be, but the sealer has not come by; it does each second."""
    return Problem(404, "not-sealed-yet", "Not sealed yet", detail, headers=UNCACHED | {"Retry-After": "1"})


def no_tile() -> Problem:
    """A path that is no tile's, or a tile that the newest checkpoint does not reach."""
    return Problem(404, "not-found", "Not found", "The tree has no such tile.", headers=UNCACHED)
