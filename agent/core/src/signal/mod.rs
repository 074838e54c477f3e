//! signal: to come.
