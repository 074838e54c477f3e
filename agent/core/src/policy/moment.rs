//! Time as policies see it: `now`, `hour`, `minute`, `weekday`.

use cedar_policy::pst::{Expr, Literal, UnaryOp};
use cedar_policy::{Context, Entities, EntityUid, EvalResult, Expression, Request};
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// What the context says about time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Moment {
    /// Milliseconds since the epoch.
    pub(crate) now: i64,
    pub(crate) hour: i8,
    pub(crate) minute: i8,
    /// 1 is Monday, 7 Sunday.
    pub(crate) weekday: i8,
}

impl Moment {
    pub(crate) fn at(now: Timestamp, zone: &TimeZone) -> Self {
        let local = zone.to_datetime(now);
        Self {
            now: now.as_millisecond(),
            hour: local.hour(),
            minute: local.minute(),
            weekday: local.date().weekday().to_monday_one_offset(),
        }
    }
}

/// The milliseconds of a literal `datetime("…")`, by Cedar's own reading of it.
pub(crate) fn literal(expression: &Expr) -> Option<i64> {
    let Expr::UnaryOp { op: UnaryOp::Datetime, expr } = expression else { return None };
    let Expr::Literal(Literal::String(written)) = &**expr else { return None };
    let quoted = written.escape_debug();
    let difference: Expression =
        format!("datetime(\"{quoted}\").durationSince(datetime(\"1970-01-01\")).toMilliseconds()").parse().ok()?;
    let nobody: EntityUid = "Team::\"\"".parse().ok()?;
    let request = Request::new(nobody.clone(), nobody.clone(), nobody, Context::empty(), None).ok()?;
    match cedar_policy::eval_expression(&request, &Entities::empty(), &difference).ok()? {
        EvalResult::Long(milliseconds) => Some(milliseconds),
        _ => None,
    }
}
