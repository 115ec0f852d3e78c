//! A queue between threads. Whoever finds it empty sleeps at once: threads that give way to others must not
//! look again and again, for each time that they yield they lose their turn for long.
//!
//! It has no bound of its own: what goes through it is bounded by whoever makes it.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What senders and receivers share.
struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    items: VecDeque<T>,
    senders: usize,
    receivers: usize,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Nothing is left half done in it by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end that items go into.
pub(super) struct Sender<T>(Arc<Shared<T>>);

/// The end that items come out of.
pub(super) struct Receiver<T>(Arc<Shared<T>>);

/// A queue, with one end of each kind.
pub(super) fn queue<T>() -> (Sender<T>, Receiver<T>) {
    let state = State { items: VecDeque::new(), senders: 1, receivers: 1 };
    let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

impl<T> Sender<T> {
    /// Puts an item in; false when nobody is left to take it out.
    pub fn send(&self, item: T) -> bool {
        let mut state = self.0.lock();
        if state.receivers == 0 {
            return false;
        }
        state.items.push_back(item);
        drop(state);
        self.0.changed.notify_one();
        true
    }
}

impl<T> Receiver<T> {
    /// Takes the oldest item out, if there is one.
    pub fn try_receive(&self) -> Option<T> {
        self.0.lock().items.pop_front()
    }

    /// Takes the oldest item out, waiting for one; `None` when none is left, and none will come.
    pub fn receive(&self) -> Option<T> {
        let empty = |state: &mut State<T>| state.items.is_empty() && state.senders > 0;
        let waited = self.0.changed.wait_while(self.0.lock(), empty);
        waited.unwrap_or_else(PoisonError::into_inner).items.pop_front()
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.lock().senders += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.0.lock().receivers += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.lock().senders -= 1;
        self.0.changed.notify_all();
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.receivers -= 1;
        // What nobody will take out may itself be waited for.
        let left =
            if state.receivers == 0 { std::mem::take(&mut state.items) } else { VecDeque::new() };
        drop(state);
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::queue;

    #[test]
    fn items_come_out_in_their_order_until_none_is_left() {
        let (sender, receiver) = queue();
        assert_eq!(receiver.try_receive(), None);
        assert!((0..5).all(|item| sender.send(item)));
        assert_eq!(receiver.try_receive(), Some(0));
        drop(sender);
        assert_eq!(std::iter::from_fn(|| receiver.receive()).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(receiver.receive(), None);
    }

    #[test]
    fn whoever_waits_is_woken_by_items_and_by_the_end() {
        let (sender, receiver) = queue();
        let takers: Vec<_> = (0..4)
            .map(|_| {
                let receiver = receiver.clone();
                thread::spawn(move || std::iter::from_fn(|| receiver.receive()).sum::<u64>())
            })
            .collect();
        let other = sender.clone();
        assert!((1..=1000).all(|item| if item % 2 == 0 {
            sender.send(item)
        } else {
            other.send(item)
        }));
        drop((sender, other));
        let sums = takers.into_iter().map(|taker| taker.join().expect("it ends"));
        assert_eq!(sums.sum::<u64>(), 500_500);
    }

    #[test]
    fn nothing_is_sent_to_nobody() {
        let (sender, receiver) = queue();
        let second = receiver.clone();
        drop(receiver);
        assert!(sender.send(1));
        drop(second);
        assert!(!sender.send(2));
    }
}
