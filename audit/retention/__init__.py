"""Retention: rules, what they mean for records, and deleting what is due."""
