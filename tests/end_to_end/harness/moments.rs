//! Moments at which something happens to what is being tested.

use std::time::{Duration, SystemTime};

/// Moments spread evenly, starting anywhere: the remainders of multiples of the golden ratio.
pub struct Moments {
    state: u32,
}

impl Moments {
    /// Starts anywhere, and prints where.
    pub fn new() -> Self {
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is later");
        println!("moments start at {}", clock.subsec_nanos());
        Self { state: clock.subsec_nanos() }
    }

    /// A number that may be any.
    pub fn any(&self) -> u64 {
        u64::from(self.state)
    }

    /// The next one, before `span` is over.
    pub fn below(&mut self, span: Duration) -> Duration {
        self.state = self.state.wrapping_add(2_654_435_769);
        span.mul_f64(f64::from(self.state) / f64::from(u32::MAX))
    }

    /// The next number, below `end`.
    pub fn number_below(&mut self, end: usize) -> usize {
        let whole = Duration::from_secs(1 << 20);
        let part = self.below(whole).as_nanos() * u128::try_from(end).expect("it is small");
        usize::try_from(part / whole.as_nanos()).expect("it is below").min(end.saturating_sub(1))
    }
}
