"""The stage that proves: gaps and their repair, reconciliation, and the runs that the ledger asks for."""
