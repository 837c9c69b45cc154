//! Images that wait for workers. A worker is given those of the graph that it has loaded, before others: loading a graph
//! can take as long as drawing an image with it.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use super::pool::Task;
use crate::lock::lock;

/// Tasks, taken by workers until it is closed.
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    tasks: VecDeque<Task>,
    /// The trial's graph that each worker has loaded.
    loaded: Vec<Option<PathBuf>>,
    is_closed: bool,
}

impl Queue {
    pub(super) fn new(workers: usize) -> Self {
        let state = State { tasks: VecDeque::new(), loaded: vec![None; workers], is_closed: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    pub(super) fn put(&self, tasks: impl IntoIterator<Item = Task>) {
        self.lock().tasks.extend(tasks);
        self.changed.notify_all();
    }

    /// Ends all waiting; what is left is given to nobody.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// Waits for the next image of a worker; `None` if there are to be no more.
    pub(super) fn take(&self, worker: usize) -> Option<Task> {
        let mut state = self.lock();
        while !state.is_closed {
            if let Some(task) = state.take(worker) {
                return Some(task);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    fn take(&mut self, worker: usize) -> Option<Task> {
        let graphs = self.tasks.iter().map(Task::graph);
        let task = self.tasks.remove(choose(graphs, &self.loaded, worker)?)?;
        if let Some(loaded) = self.loaded.get_mut(worker) {
            *loaded = task.graph().map(Path::to_path_buf);
        }
        Some(task)
    }
}

/// Returns which of the tasks with these graphs is next for `worker`: the first of the graph that it has loaded, else
/// the first of one that no other worker has, else the first.
fn choose<'a>(
    graphs: impl Iterator<Item = Option<&'a Path>> + Clone,
    loaded: &[Option<PathBuf>],
    worker: usize,
) -> Option<usize> {
    let is_loaded_by = |number: usize, graph: Option<&Path>| {
        graph.is_some() && loaded.get(number).is_some_and(|loaded| loaded.as_deref() == graph)
    };
    let is_own = |graph: Option<&Path>| is_loaded_by(worker, graph);
    let is_free = |graph: Option<&Path>| {
        (0..loaded.len()).filter(|other| *other != worker).all(|other| !is_loaded_by(other, graph))
    };
    let first = |wanted: &dyn Fn(Option<&Path>) -> bool| graphs.clone().position(wanted);
    first(&is_own).or_else(|| first(&is_free)).or_else(|| first(&|_| true))
}

impl Task {
    /// Returns the trial's graph that it needs.
    fn graph(&self) -> Option<&Path> {
        self.networks.unets.given().next_back().map(PathBuf::as_path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_keep_to_their_graphs_while_there_are_others() {
        let next = |graphs: &[&str], loaded: [&str; 2], worker| {
            let path = |name: &str| (!name.is_empty()).then(|| PathBuf::from(name));
            let graphs: Vec<_> = graphs.iter().map(|name| path(name)).collect();
            choose(graphs.iter().map(Option::as_deref), &loaded.map(path), worker)
        };
        // Its own, though another's comes first.
        assert_eq!(next(&["a", "b", "b"], ["a", "b"], 1), Some(1));
        // One that nobody has.
        assert_eq!(next(&["a", "a", "c"], ["a", "b"], 1), Some(2));
        assert_eq!(next(&["a", "b"], ["a", ""], 1), Some(1));
        // The first, rather than wait.
        assert_eq!(next(&["a", "a"], ["a", "b"], 1), Some(0));
        // The dense network, which all have; one graph for both is taken in order.
        assert_eq!(next(&["a", "", "c"], ["a", ""], 1), Some(1));
        assert_eq!(next(&["a", "a"], ["a", "a"], 1), Some(0));
        assert_eq!(next(&[], ["a", ""], 0), None);
    }
}
