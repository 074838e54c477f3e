//! stance: to come.
