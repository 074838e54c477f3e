//! record: to come.
