//! Allowance for pre-builds: in quiet hours only, and so many seconds a day, as most of what is pre-built is
//! never asked for. Pure: it is told the time.

use std::str::FromStr;
use std::time::Duration;

use super::{DAY, day};

/// The hours of the day in which something may be pre-built, up to one whole day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hours {
    /// Since midnight.
    from: Duration,
    /// Length from then on.
    length: Duration,
}

impl Hours {
    /// At any time.
    pub const ALWAYS: Self = Self { from: Duration::ZERO, length: Duration::MAX };

    /// The rest of these hours from `now` on.
    fn left(self, now: Duration) -> Duration {
        if self.length >= DAY {
            return Duration::MAX;
        }
        let (from, time) = (self.from.as_secs(), now.as_secs());
        let into = Duration::from_secs((time + DAY.as_secs() - from) % DAY.as_secs());
        self.length.saturating_sub(into + Duration::from_nanos(u64::from(now.subsec_nanos())))
    }
}

/// Why a text says no hours.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("neither \"always\" nor hours of the day such as 22:00-06:00")]
pub struct NotHours;

impl FromStr for Hours {
    type Err = NotHours;

    fn from_str(text: &str) -> Result<Self, NotHours> {
        if text == "always" {
            return Ok(Self::ALWAYS);
        }
        let (from, to) = text.split_once('-').ok_or(NotHours)?;
        let (from, to) = (time_of_day(from).ok_or(NotHours)?, time_of_day(to).ok_or(NotHours)?);
        // From midnight to midnight is a day, not nothing.
        Ok(Self { from, length: if to > from { to - from } else { to + DAY - from } })
    }
}

fn time_of_day(text: &str) -> Option<Duration> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |text: &str, below: u64| {
        let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u64>().ok().filter(|number| digits && *number < below)
    };
    Some(Duration::from_secs(number(hours, 24)? * 3600 + number(minutes, 60)? * 60))
}

/// Allowance of each day, and the part that is spent today. Times are durations since any midnight.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    hours: Hours,
    per_day: Duration,
    /// Number of the day of the latest pre-build.
    day: u64,
    spent: Duration,
}

impl Allowance {
    /// Within these hours, and no longer than this on one day.
    #[must_use]
    pub const fn new(hours: Hours, per_day: Duration) -> Self {
        Self { hours, per_day, day: 0, spent: Duration::ZERO }
    }

    /// As before a restart: so much was pre-built on that day.
    pub fn restore(&mut self, day: u64, spent: Duration) {
        (self.day, self.spent) = (day, spent);
    }

    /// The number of the latest day on which something was pre-built, and how long on that day.
    #[must_use]
    pub const fn spent(&self) -> (u64, Duration) {
        (self.day, self.spent)
    }

    /// Time that was spent on pre-builds today.
    #[must_use]
    pub fn spent_today(&self, now: Duration) -> Duration {
        if day(now) == self.day { self.spent } else { Duration::ZERO }
    }

    /// Time for which a pre-build may run that is started now; zero when none may.
    #[must_use]
    pub fn left(&self, now: Duration) -> Duration {
        if self.per_day >= DAY {
            return self.hours.left(now);
        }
        let spent = self.spent_today(now);
        // What goes on after midnight has the whole of the next day's, which is not less.
        self.hours.left(now).min(self.per_day.saturating_sub(spent))
    }

    /// Something was pre-built, which was nobody's all that time.
    pub fn spend(&mut self, since: Duration, until: Duration) {
        let today = day(until);
        if today != self.day {
            (self.day, self.spent) = (today, Duration::ZERO);
        }
        let midnight = Duration::from_secs(today * DAY.as_secs());
        self.spent += until.saturating_sub(since.max(midnight));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn hours(text: &str) -> Hours {
        text.parse().expect("hours")
    }

    #[test]
    fn hours_may_go_over_midnight() {
        let night = hours("22:00-06:00");
        for (now, left) in [(21, 0), (22, 8), (23, 7), (24, 6), (29, 1), (30, 0), (24 * 9 + 5, 1)] {
            assert_eq!(night.left(HOUR * now), HOUR * left, "{now}");
        }
        let almost = HOUR * 6 - Duration::from_millis(1);
        assert_eq!(night.left(almost), Duration::from_millis(1));
        assert_eq!(hours("12:30-13:00").left(HOUR * 12), Duration::ZERO);
        assert_eq!(hours("12:30-13:00").left(HOUR * 25 / 2), HOUR / 2);
        for whole in ["always", "00:00-00:00", "07:00-07:00"] {
            assert_eq!(hours(whole).left(HOUR * 3), Duration::MAX);
        }
    }

    #[test]
    fn what_says_no_hours_is_refused() {
        for text in
            ["", "night", "22-06", "22:00", "24:00-06:00", "22:60-06:00", "+2:00-06:00", "022:00-06:00"]
        {
            assert_eq!(text.parse::<Hours>(), Err(NotHours), "{text}");
        }
    }

    #[test]
    fn each_day_has_its_own_seconds() {
        let mut allowance = Allowance::new(Hours::ALWAYS, HOUR);
        assert_eq!(allowance.left(HOUR * 10), HOUR);
        allowance.spend(HOUR * 10, HOUR * 10 + HOUR / 4);
        assert_eq!(allowance.left(HOUR * 11), HOUR * 3 / 4);
        allowance.spend(HOUR * 11, HOUR * 12);
        assert_eq!(allowance.left(HOUR * 23), Duration::ZERO);
        assert_eq!(allowance.left(HOUR * 24), HOUR);
        allowance.spend(HOUR * 95 / 4, HOUR * 97 / 4);
        assert_eq!(allowance.left(HOUR * 25), HOUR * 3 / 4, "only what was after midnight");
        assert_eq!(Allowance::new(Hours::ALWAYS, DAY).left(HOUR), Duration::MAX);
        assert_eq!(Allowance::new(hours("01:00-02:00"), HOUR * 3).left(HOUR), HOUR);
    }
}
