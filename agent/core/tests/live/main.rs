//! Claims about live state: signals, risk, grants, escalations, offboarding, expiry, and all of them at random.

#[cfg(test)]
mod escalations;
#[cfg(test)]
mod expiry;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod grants;
#[cfg(test)]
mod model;
#[cfg(test)]
mod people;
#[cfg(test)]
mod signals;
