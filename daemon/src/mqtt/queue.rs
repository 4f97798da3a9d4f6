//! Questions that wait: bounded, with a fair share for each client, in order of priority.

use std::collections::VecDeque;

use crate::api::wire::Priority;

/// Waiting entries; `T` is a question.
#[derive(Debug)]
pub(super) struct Queue<T> {
    most: usize,
    /// By priority, the highest first. Within one, clients take turns; each has its questions in their order.
    classes: [VecDeque<(String, VecDeque<T>)>; 3],
}

impl<T> Queue<T> {
    /// A queue of at most `most` entries, at least one.
    pub(super) fn new(most: usize) -> Self {
        Self { most: most.max(1), classes: Default::default() }
    }

    /// From now on at most `most` entries; those that wait stay.
    pub(super) fn set_most(&mut self, most: usize) {
        self.most = most.max(1);
    }

    /// Entries that wait.
    pub(super) fn len(&self) -> usize {
        self.lines().map(|(_, line)| line.len()).sum()
    }

    fn lines(&self) -> impl Iterator<Item = &(String, VecDeque<T>)> {
        self.classes.iter().flatten()
    }

    /// Whether a client finds room: there is a place, and it has not taken its share. One client alone leaves a quarter free, so
    /// that another one finds room at once.
    pub(super) fn has_room(&self, client: &str) -> bool {
        let of_client: usize = self.lines().filter(|(name, _)| name == client).map(|(_, line)| line.len()).sum();
        let mut others: Vec<&str> = self.lines().map(|(name, _)| name.as_str()).filter(|name| *name != client).collect();
        others.sort_unstable();
        others.dedup();
        let share = (self.most / (others.len() + 1)).min(self.most - self.most / 4).max(1);
        self.len() < self.most && of_client < share
    }

    /// Adds an entry, whether or not there is room.
    pub(super) fn push(&mut self, priority: Priority, client: &str, entry: T) {
        let class = &mut self.classes[class_of(priority)];
        match class.iter_mut().find(|(name, _)| name == client) {
            Some((_, line)) => line.push_back(entry),
            None => class.push_back((client.to_owned(), VecDeque::from([entry]))),
        }
    }

    /// Whose turn it is.
    pub(super) fn pop(&mut self) -> Option<T> {
        let class = self.classes.iter_mut().find(|class| !class.is_empty())?;
        let (client, mut line) = class.pop_front()?;
        let entry = line.pop_front();
        if !line.is_empty() {
            class.push_back((client, line));
        }
        entry
    }

    /// Takes out the entries that `is_wanted` names.
    pub(super) fn take(&mut self, is_wanted: impl Fn(&T) -> bool) -> Vec<T> {
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

    /// The smallest of what `of` says of the entries.
    pub(super) fn min_of<K: Ord>(&self, of: impl Fn(&T) -> K) -> Option<K> {
        self.lines().flat_map(|(_, line)| line).map(of).min()
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
        std::iter::from_fn(|| queue.pop()).collect()
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
        assert_eq!(queue.min_of(|n| *n), Some(0));
        assert_eq!(drained(&mut queue), [0, 1, 10, 2, 3, 20]);
        assert_eq!((queue.len(), queue.min_of(|n| *n)), (0, None));
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
