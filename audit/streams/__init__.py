"""Streams: records delivered to a SIEM, in order, as they are sealed."""
