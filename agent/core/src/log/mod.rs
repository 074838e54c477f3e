//! log: to come.
