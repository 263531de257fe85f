//! Which recovery points are kept. Pure: points, policy and time in, points out.
//!
//! ```text
//!  age ──► 0          every        minutes         hours            days               months
//!          ├── all ────┼─ 1 a minute ┼─ 1 an hour ──┼─── 1 a day ────┼─── 1 a month ─────┤
//! ```
//!
//! The point that stands for a minute, hour, day or month (UTC) is the first in it. So the one that stands for a day
//! stands for its first hour and minute too: what a coarse step keeps, every finer one kept before, and thinning early
//! loses nothing that thinning late would keep.
//!
//! Invariants
//! - The newest point is kept, whatever the policy says.
//! - A longer policy keeps at least as much. Time alone makes it less, never more.
//! - A label alone makes no point old, nor many points one: old is by the younger of it and of the time at which the point was in the
//!   vault, the minute, hour, day and month by the older.

use std::time::Duration;

use crate::restore::points::Point;
use crate::types::{BarrierKind, Micros};

/// Names of the terms, as in the configuration, in the order of [`Policy::terms`].
pub const TERMS: [&str; 7] = ["every", "minutes", "hours", "days", "months", "app", "named"];

/// For how long something is kept.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Term {
    /// Up to this age; zero is not at all.
    For(Duration),
    /// For ever.
    Forever,
}

impl Term {
    /// Not at all.
    pub const NONE: Self = Self::For(Duration::ZERO);

    fn covers(self, age: Duration) -> bool {
        match self {
            Self::For(term) => !term.is_zero() && age <= term,
            Self::Forever => true,
        }
    }
}

/// A span of time of which everything is held, its ends included: the state in which it found the disk, and every write in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Its first label.
    pub from: Micros,
    /// Its last label.
    pub until: Micros,
}

impl Held {
    /// Whether what is labelled so lies in the span.
    #[must_use]
    pub fn contains(&self, label: Micros) -> bool {
        (self.from..=self.until).contains(&label)
    }

    /// Whether a state that began at `label`, and ended when the one labelled `next` began, was there during the span.
    #[must_use]
    pub fn meets(&self, label: Micros, next: Option<Micros>) -> bool {
        label <= self.until && (label >= self.from || next.is_none_or(|next| next > self.from))
    }
}

/// What is kept of a disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Every barrier.
    pub every: Term,
    /// One point a minute.
    pub minutes: Term,
    /// One point an hour.
    pub hours: Term,
    /// One point a day.
    pub days: Term,
    /// One point a month.
    pub months: Term,
    /// Every app point.
    pub app: Term,
    /// Every point that has a name.
    pub named: Term,
    /// Legal hold: everything.
    pub hold: bool,
    /// Legal hold of spans.
    pub holds: Vec<Held>,
}

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

impl Policy {
    /// Everything for ever: what holds where nobody has written a policy.
    #[must_use]
    pub fn everything() -> Self {
        let forever = Term::Forever;
        Self {
            every: forever,
            minutes: forever,
            hours: forever,
            days: forever,
            months: forever,
            app: forever,
            named: forever,
            hold: true,
            holds: Vec::new(),
        }
    }

    /// The terms in the order of [`TERMS`].
    #[must_use]
    pub fn terms(&self) -> [Term; 7] {
        [self.every, self.minutes, self.hours, self.days, self.months, self.app, self.named]
    }
}

impl Default for Policy {
    /// A day of everything, a quarter of days, a year of months: what an attack that was noticed late needs.
    fn default() -> Self {
        let term = |seconds| Term::For(Duration::from_secs(seconds));
        Self {
            every: term(DAY),
            minutes: term(3 * DAY),
            hours: term(14 * DAY),
            days: term(90 * DAY),
            months: term(365 * DAY),
            app: term(30 * DAY),
            named: term(365 * DAY),
            hold: false,
            holds: Vec::new(),
        }
    }
}

/// Why a point is kept: the first reason that holds, in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// It is the newest.
    Newest,
    /// A legal hold.
    Hold,
    /// It is young.
    Every,
    /// Its name.
    Named,
    /// It is an app point.
    App,
    /// It stands for a minute.
    Minute,
    /// It stands for an hour.
    Hour,
    /// It stands for a day.
    Day,
    /// It stands for a month.
    Month,
    /// Another disk keeps its point of the same group.
    Group,
}

impl Reason {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Newest => "newest",
            Self::Hold => "hold",
            Self::Every => "every",
            Self::Named => "named",
            Self::App => "app",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Month => "month",
            Self::Group => "group",
        }
    }
}

/// The minute, hour, day and month, counted from some start, of a label.
fn spans(label: Micros) -> [u64; 4] {
    const MINUTE_MICROS: u64 = 60_000_000;
    let minute = label.0 / MINUTE_MICROS;
    let time = i64::try_from(label.0).ok().and_then(|micros| jiff::Timestamp::from_microsecond(micros).ok());
    // Labels beyond the calendar, which no clock gives, have months of 30 days.
    let month = time.map_or(minute / (60 * 24 * 30), |time| {
        let date = jiff::tz::Offset::UTC.to_datetime(time);
        date.year().unsigned_abs() as u64 * 12 + date.month().unsigned_abs() as u64
    });
    [minute, minute / 60, minute / (60 * 24), month]
}

/// For each point, oldest first, why it is kept; none if it is not. `put_by` tells when each was in the vault at the latest.
#[must_use]
pub fn keep(points: &[Point], put_by: impl Fn(usize) -> Micros, policy: &Policy, now: Micros) -> Vec<Option<Reason>> {
    let mut before: Option<[u64; 4]> = None;
    let mut out = Vec::with_capacity(points.len());
    for (at, point) in points.iter().enumerate() {
        let put_by = put_by(at);
        let age = Duration::from_micros(now.0.saturating_sub(point.label.max(put_by).0));
        // What a clock that was ahead has labelled came before its label, and not all in one moment.
        let spans = spans(if put_by == Micros(0) { point.label } else { point.label.min(put_by) });
        // The first of a span is where the span changes.
        let first = |span: usize| before.is_none_or(|before| before[span] != spans[span]);
        let next = points.get(at + 1).map(|next| next.label);
        let in_span = |held: &Held| held.meets(point.label, next) || held.contains(put_by);
        let held = policy.hold || policy.holds.iter().any(in_span);
        let reasons = [
            (at + 1 == points.len(), Reason::Newest),
            (held, Reason::Hold),
            (policy.every.covers(age), Reason::Every),
            (point.name.is_some() && policy.named.covers(age), Reason::Named),
            (point.kind == Some(BarrierKind::App) && policy.app.covers(age), Reason::App),
            (first(0) && policy.minutes.covers(age), Reason::Minute),
            (first(1) && policy.hours.covers(age), Reason::Hour),
            (first(2) && policy.days.covers(age), Reason::Day),
            (first(3) && policy.months.covers(age), Reason::Month),
        ];
        before = Some(spans);
        out.push(reasons.into_iter().find(|(holds, _)| *holds).map(|(_, reason)| reason));
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::types::{Epoch, PointId, Seq};

    /// 2027-01-15T08:00:00Z.
    const START: u64 = 1_800_000_000;

    fn point(at_seconds: u64, kind: BarrierKind, name: Option<&str>) -> Point {
        Point {
            id: PointId { epoch: Epoch(1), seq: Seq(at_seconds + 1) },
            label: Micros((START + at_seconds) * 1_000_000),
            uncertainty_micros: 0,
            kind: Some(kind),
            group: None,
            name: name.map(str::to_owned),
        }
    }

    fn kept(points: &[Point], policy: &Policy, now_seconds: u64) -> BTreeSet<PointId> {
        let reasons = keep(points, |_| Micros(0), policy, Micros((START + now_seconds) * 1_000_000));
        points.iter().zip(reasons).filter_map(|(point, reason)| reason.map(|_| point.id)).collect()
    }

    fn term(seconds: u64) -> Term {
        Term::For(Duration::from_secs(seconds))
    }

    fn nothing() -> Policy {
        let none = Term::NONE;
        Policy {
            every: none,
            minutes: none,
            hours: none,
            days: none,
            months: none,
            app: none,
            named: none,
            hold: false,
            holds: Vec::new(),
        }
    }

    #[test]
    fn a_week_of_seconds_is_thinned_to_what_each_step_asks_for() {
        let points: Vec<_> = (0..7 * DAY).step_by(10).map(|at| point(at, BarrierKind::Crash, None)).collect();
        let policy =
            Policy { every: term(HOUR), minutes: term(2 * HOUR), hours: term(DAY), days: term(90 * DAY), ..nothing() };
        let reasons = keep(&points, |_| Micros(0), &policy, Micros((START + 7 * DAY) * 1_000_000));
        let count = |reason| reasons.iter().filter(|one| **one == Some(reason)).count();
        assert_eq!(count(Reason::Newest), 1);
        assert_eq!(count(Reason::Every), 359);
        assert_eq!(count(Reason::Minute), 60);
        assert_eq!(count(Reason::Hour), 22);
        // The first day is cut by the start, and counts as one; the last one stands for an hour too.
        assert_eq!(count(Reason::Day), 7);
    }

    #[test]
    fn app_points_names_and_holds_stay_longer_than_plain_ones() {
        let points = [
            point(10, BarrierKind::Crash, None),
            point(20, BarrierKind::App, None),
            point(30, BarrierKind::Crash, Some("before upgrade")),
            point(40, BarrierKind::Crash, None),
            point(50, BarrierKind::Crash, None),
        ];
        let policy = Policy { app: term(DAY), named: term(2 * DAY), ..nothing() };
        let seqs = |policy: &Policy, now| kept(&points, policy, now).iter().map(|id| id.seq.0).collect::<Vec<_>>();
        assert_eq!(seqs(&policy, DAY), [21, 31, 51]);
        assert_eq!(seqs(&policy, DAY + 100), [31, 51]);
        assert_eq!(seqs(&policy, 3 * DAY), [51]);
        let held = Held { from: points[2].label, until: points[3].label };
        assert_eq!(seqs(&Policy { holds: vec![held], ..nothing() }, 9 * DAY), [31, 41, 51]);
        // Between two points the disk is as the first of them left it.
        let label = |seconds: u64| Micros((START + seconds) * 1_000_000);
        let between = Held { from: label(22), until: label(27) };
        assert_eq!(seqs(&Policy { holds: vec![between], ..nothing() }, 9 * DAY), [21, 51]);
        assert_eq!(seqs(&Policy { hold: true, ..nothing() }, 9 * DAY), [11, 21, 31, 41, 51]);
        assert_eq!(seqs(&Policy { months: Term::Forever, ..nothing() }, 9000 * DAY), [11, 51]);
    }

    #[test]
    fn a_clock_that_was_behind_makes_no_point_old_before_it_is() {
        let points: Vec<_> = (0..4).map(|at| point(at * 10, BarrierKind::Crash, None)).collect();
        let policy = Policy { every: term(HOUR), ..nothing() };
        let now = Micros((START + 2 * DAY) * 1_000_000);
        // Labels say two days; but the second and third came into the vault half an hour ago.
        let put_by = |at: usize| if (1..3).contains(&at) { Micros(now.0 - 1_800_000_000) } else { Micros(0) };
        let reasons = keep(&points, put_by, &policy, now);
        assert_eq!(reasons, [None, Some(Reason::Every), Some(Reason::Every), Some(Reason::Newest)]);
    }

    #[test]
    fn a_clock_that_was_ahead_makes_no_month_one_moment() {
        // A leap of thirty days: all labels of thirty days are one and the same.
        let label = 30 * DAY;
        let points: Vec<_> = (0..30)
            .map(|day| Point {
                id: PointId { epoch: Epoch(1), seq: Seq(day + 1) },
                ..point(label, BarrierKind::Crash, None)
            })
            .collect();
        let put_by = |at: usize| Micros((START + at as u64 * DAY) * 1_000_000);
        let policy = Policy { days: term(90 * DAY), ..nothing() };
        let reasons = keep(&points, put_by, &policy, Micros((START + 40 * DAY) * 1_000_000));
        assert_eq!(reasons.iter().filter(|reason| reason.is_some()).count(), 30);
    }

    #[test]
    fn months_are_those_of_the_calendar() {
        // 2027-01-31T23:59:59Z and two seconds later.
        let at = 1_801_439_999 - START;
        let points = [
            point(at, BarrierKind::Crash, None),
            point(at + 2, BarrierKind::Crash, None),
            point(at + 9, BarrierKind::Crash, None),
        ];
        let policy = Policy { months: term(DAY), ..nothing() };
        assert_eq!(kept(&points, &policy, at + 20).len(), 3, "the last of January, the first of February, the newest");
    }

    fn terms() -> impl Strategy<Value = Term> {
        prop_oneof![3 => (0..40 * DAY).prop_map(term), 1 => Just(Term::Forever), 1 => Just(Term::NONE)]
    }

    fn policies() -> impl Strategy<Value = Policy> {
        let steps = (terms(), terms(), terms(), terms(), terms(), terms(), terms());
        steps.prop_map(|(every, minutes, hours, days, months, app, named)| Policy {
            every,
            minutes,
            hours,
            days,
            months,
            app,
            named,
            ..nothing()
        })
    }

    /// Points at growing times, some of them near each other.
    fn histories() -> impl Strategy<Value = Vec<Point>> {
        let gap = prop_oneof![5 => 1..90_u64, 3 => 1..4000_u64, 2 => 1..3 * DAY];
        prop::collection::vec((gap, 0..8_u8), 1..120).prop_map(|steps| {
            let mut at = 0;
            let make = |(gap, kind): (u64, u8)| {
                at += gap;
                let barrier = if kind == 0 { BarrierKind::App } else { BarrierKind::Crash };
                point(at, barrier, (kind == 1).then_some("named"))
            };
            steps.into_iter().map(make).collect()
        })
    }

    fn longer(policy: &Policy, which: u8) -> Policy {
        let mut out = policy.clone();
        let terms = [
            &mut out.every,
            &mut out.minutes,
            &mut out.hours,
            &mut out.days,
            &mut out.months,
            &mut out.app,
            &mut out.named,
        ];
        for (bit, term) in terms.into_iter().enumerate() {
            if let Term::For(seconds) = term
                && which & (1 << bit) != 0
            {
                *seconds += Duration::from_secs(5 * HOUR);
            }
        }
        out
    }

    proptest! {
        #[test]
        fn the_newest_is_kept_and_what_is_kept_was_there(points in histories(), policy in policies(), now in 0..90 * DAY) {
            let kept = kept(&points, &policy, now);
            prop_assert!(kept.contains(&points[points.len() - 1].id));
            prop_assert!(kept.iter().all(|id| points.iter().any(|point| point.id == *id)));
        }

        #[test]
        fn a_longer_policy_keeps_at_least_as_much(
            points in histories(), policy in policies(), which in any::<u8>(), now in 0..90 * DAY,
        ) {
            prop_assert!(kept(&points, &policy, now).is_subset(&kept(&points, &longer(&policy, which), now)));
        }

        #[test]
        fn time_alone_makes_it_less(points in histories(), policy in policies(), now in 0..90 * DAY, later in 0..60 * DAY) {
            let (first, second) = (kept(&points, &policy, now), kept(&points, &policy, now + later));
            prop_assert!(second.is_subset(&first));
        }

        #[test]
        fn thinning_early_loses_nothing_that_thinning_late_keeps(
            points in histories(), policy in policies(), cut in any::<prop::sample::Index>(), later in 0..60 * DAY,
        ) {
            let cut = cut.index(points.len()) + 1;
            let now = points[cut - 1].id.seq.0;
            let early = kept(&points[..cut], &policy, now);
            let left: Vec<Point> =
                points.iter().enumerate().filter(|(at, point)| *at >= cut || early.contains(&point.id)).map(|(_, point)| point.clone()).collect();
            let end = points[points.len() - 1].id.seq.0 + later;
            let (twice, once) = (kept(&left, &policy, end), kept(&points, &policy, end));
            prop_assert!(once.is_subset(&twice));
        }
    }
}
