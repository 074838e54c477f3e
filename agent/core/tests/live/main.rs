//! Claims about live state: signals, risk, grants, escalations, offboarding, expiry, and all of them at random.

mod escalations;
mod expiry;
mod fixture;
mod grants;
mod model;
mod people;
mod signals;
