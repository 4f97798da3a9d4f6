//! The queue of questions: bounded, with a fair share for each client, ordered by priority.

use std::collections::VecDeque;

use wire::Priority;

/// Waiting entries; `T` is a question.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    most: usize,
    /// One class for each priority, the highest first. Within a class, clients take turns. Each client's questions stay in order.
    classes: [VecDeque<(String, VecDeque<T>)>; 3],
}

impl<T> Queue<T> {
    /// A queue of at most `most` entries, at least one.
    pub(crate) fn new(most: usize) -> Self {
        Self { most: most.max(1), classes: Default::default() }
    }

    /// Limits the queue to `most` entries; entries that already wait stay.
    pub(crate) fn set_most(&mut self, most: usize) {
        self.most = most.max(1);
    }

    /// Number of waiting entries.
    pub(crate) fn len(&self) -> usize {
        self.lines().map(|(_, line)| line.len()).sum()
    }

    fn lines(&self) -> impl Iterator<Item = &(String, VecDeque<T>)> {
        self.classes.iter().flatten()
    }

    /// Whether the queue has a place for this client, within the client's share. A lone client leaves a quarter of the queue
    /// free, so that a second client finds room at once.
    pub(crate) fn has_room(&self, client: &str) -> bool {
        let of_client: usize = self.lines().filter(|(name, _)| name == client).map(|(_, line)| line.len()).sum();
        let mut others: Vec<&str> = self.lines().map(|(name, _)| name.as_str()).filter(|name| *name != client).collect();
        others.sort_unstable();
        others.dedup();
        let share = (self.most / (others.len() + 1)).min(self.most - self.most / 4).max(1);
        self.len() < self.most && of_client < share
    }

    /// Adds an entry, whether or not there is room.
    pub(crate) fn push(&mut self, priority: Priority, client: &str, entry: T) {
        let class = &mut self.classes[class_of(priority)];
        match class.iter_mut().find(|(name, _)| name == client) {
            Some((_, line)) => line.push_back(entry),
            None => class.push_back((client.to_owned(), VecDeque::from([entry]))),
        }
    }

    /// The next entry that `may_go`. An entry that may not go holds up only the later entries of its client.
    pub(crate) fn pop(&mut self, may_go: impl Fn(&T) -> bool) -> Option<T> {
        for class in &mut self.classes {
            let Some(at) = class.iter().position(|(_, line)| line.front().is_some_and(&may_go)) else { continue };
            let (client, mut line) = class.remove(at)?;
            let entry = line.pop_front();
            if !line.is_empty() {
                class.push_back((client, line));
            }
            return entry;
        }
        None
    }

    /// Removes and returns the entries that `is_wanted` selects.
    pub(crate) fn take(&mut self, is_wanted: impl Fn(&T) -> bool) -> Vec<T> {
        let mut taken = Vec::new();
        for class in &mut self.classes {
            for (_, line) in class.iter_mut() {
                let (wanted, rest) = std::mem::take(line).into_iter().partition(&is_wanted);
                *line = rest;
                taken.extend::<VecDeque<T>>(wanted);
            }
            class.retain(|(_, line)| !line.is_empty());
        }
        taken
    }
}

fn class_of(priority: Priority) -> usize {
    match priority {
        Priority::High => 0,
        Priority::Normal => 1,
        Priority::Low => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drained(queue: &mut Queue<u32>) -> Vec<u32> {
        std::iter::from_fn(|| queue.pop(|_| true)).collect()
    }

    #[test]
    fn clients_take_turns_and_priorities_go_first() {
        let mut queue = Queue::new(16);
        for n in [1, 2, 3] {
            queue.push(Priority::Normal, "a", n);
        }
        queue.push(Priority::Normal, "b", 10);
        queue.push(Priority::Low, "c", 20);
        queue.push(Priority::High, "a", 0);
        assert_eq!(queue.len(), 6);
        assert_eq!(drained(&mut queue), [0, 1, 10, 2, 3, 20]);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn a_held_entry_holds_up_its_client_only() {
        let mut queue = Queue::new(8);
        for (client, n) in [("a", 1), ("a", 2), ("b", 3)] {
            queue.push(Priority::Normal, client, n);
        }
        assert_eq!(queue.pop(|n| *n != 1), Some(3));
        assert_eq!(queue.pop(|n| *n != 1), None);
        assert_eq!(drained(&mut queue), [1, 2]);
    }

    #[test]
    fn nobody_takes_the_whole_queue() {
        let mut queue = Queue::new(8);
        let mut taken = 0;
        while queue.has_room("greedy") {
            queue.push(Priority::Normal, "greedy", taken);
            taken += 1;
        }
        assert_eq!(taken, 6);
        assert!(queue.has_room("other"));
        queue.push(Priority::Low, "other", 100);
        assert!(!queue.has_room("greedy"), "its share is now half");
        assert!(queue.has_room("other"));
        queue.push(Priority::Low, "other", 101);
        assert!(!queue.has_room("other") && !queue.has_room("third"), "full");
        assert!(Queue::<u32>::new(1).has_room("a"));
    }

    #[test]
    fn entries_are_taken_out() {
        let mut queue = Queue::new(8);
        for n in 0..6 {
            queue.push(Priority::Normal, ["a", "b"][n as usize % 2], n);
        }
        let mut odd = queue.take(|n| n % 2 == 1);
        odd.sort_unstable();
        assert_eq!(odd, [1, 3, 5]);
        assert_eq!(drained(&mut queue), [0, 2, 4]);
    }
}
