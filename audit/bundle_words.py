"""The page that a bundle has for its reader."""

from muniment.bundle import Manifest

README = """\
A PROOF BUNDLE OF MUNIMENT

Muniment decides and records which AI client may read or change whose data. This bundle proves a part of its log: that
these records were made then, in this order, and that none was changed, taken out or put in since.

WHAT WAS ASKED FOR

  Time        {since}
              to before {until}
  User        {subject}
  Client      {client}
  Details     {details}
  Made at     {created} by {url}

WHAT IS IN IT

  manifest.json      what was asked for, and the digests of the other files
  records.jsonl      records {first:,} to {last:,} of the log, each with its hash: {opened:,} open, {closed:,} closed
  batches.jsonl      the signed groups in which they were written, each naming the one before
  checkpoints.jsonl  the signed state of the log that proves them, with the signatures of witnesses, and earlier ones
  context.jsonl      records outside of the range that others are judged by: changes of the policy, keys, deletions
  disclosures.jsonl  protected details (who, from where) of open records, if they were disclosed
  keys.json          the public keys of the platform, for information only

HOW TO VERIFY IT

  1. On a computer of your own:  pip install muniment
     (or the file muniment-...whl, from a source that you trust; Python 3.11 or newer; no network is needed after that)
  2. Get the platform's public keys yourself, not from this bundle, and keep them for the next time:
       curl {url}/v1/keys > keys.json
     Compare the log key with what the platform's operator told you by another way. If witnesses cosign the log, write
     all keys as lines in one file instead (vkeys: of the log, the writer, and each witness that you trust).
  3. Verify, and say which time you asked for:
       muniment verify BUNDLE.zip --trust keys.json --from {since} --to {until}
     If you keep checkpoints from before (from a witness, a mailbox, an earlier bundle), add --checkpoint FILE for
     each: then a log that was rewritten since, or cut off, is found. For each of them the bundle must have been made
     with --checkpoint, too.

WHAT THE RESULT MEANS

  Exit status 0: everything holds. 1: each line names a fault, with a code; one fault is enough for doubt.
  2: the files or the command line could not be used.

WHAT IT PROVES, AND WHAT NOT

  Each open record is word for word what was written; the records stand in the order and number in which they were
  written; none is missing between the first and the last; each decision names the policy that it was made from, and
  the changes of the policy are all there.
  A closed record stays closed: its hash proves that it exists, not what it says. If the bundle was asked for one user
  or client, that no closed record is about them too is the platform's word. Only a bundle in which all are open can
  show it.
  What came after the end of the log as it was sealed here is not shown. That nothing was cut off there, only a later
  checkpoint shows, from a witness or another place that the operator of the database cannot reach.
  Nothing shows what was never recorded.
"""


def readme(manifest: Manifest, url: str) -> str:
    """The page, for this bundle."""
    asked, counts = manifest.asked, manifest.counts
    return README.format(
        since=asked.since, until=asked.until, subject=asked.subject or "all", client=asked.client or "all",
        details="disclosed for the records asked for" if asked.disclose else "not disclosed",
        created=manifest.created_at, url=url.rstrip("/"), first=manifest.first, last=manifest.last,
        opened=counts["opened"], closed=counts["closed"],
    )  # fmt: skip
