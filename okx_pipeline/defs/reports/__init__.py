"""The stage that tells people: a report a day."""
