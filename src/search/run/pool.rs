//! The workers: trials' images go out to them, scores come back.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender},
    },
};

use super::queue::Queue;
use crate::{
    diffusion::pipeline::Unets,
    lock::lock,
    observer::Observer,
    plan::{Amplify, AmplifyWeight},
    search::{
        SearchError,
        compile::TrialGraph,
        space::{Over, Settings},
        trial::{Networks, Scores, Shot, ShotScore, Worker, WorkerTime},
    },
};

/// A trial that is being run.
pub(super) struct Running {
    pub(super) number: u64,
    pub(super) settings: Settings,
    pub(super) work: Work,
    left: usize,
    shots: Vec<Option<ShotScore>>,
}

/// The work to do for it.
pub(super) enum Work {
    /// Its images are out.
    Out { _graph: TrialGraph, failed: Arc<Mutex<Option<String>>> },
    /// It has the values of an earlier trial.
    Same(u64),
    /// It failed before it was run.
    Failed(Scores),
}

/// An image for a worker.
pub(super) struct Task {
    number: u64,
    index: usize,
    shot: Shot,
    pub(super) networks: Arc<Networks>,
    failed: Arc<Mutex<Option<String>>>,
}

/// The answer of a worker.
pub(super) enum Answer {
    Ready(Result<(), SearchError>),
    Shot { number: u64, index: usize, result: Result<ShotScore, SearchError> },
    Skipped { number: u64 },
}

/// The workers as seen from the search.
pub(super) struct WorkerPool<'a> {
    queue: &'a Queue,
    answered: Receiver<Answer>,
    running: VecDeque<Running>,
}

impl Drop for WorkerPool<'_> {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl<'a> WorkerPool<'a> {
    pub(super) fn new(queue: &'a Queue, answered: Receiver<Answer>) -> Self {
        Self { queue, answered, running: VecDeque::new() }
    }

    /// Returns the running trial with these settings.
    pub(super) fn running(&self, settings: &Settings) -> Option<u64> {
        self.running.iter().find(|trial| trial.settings == *settings).map(|trial| trial.number)
    }

    /// Waits until all workers have started.
    pub(super) fn ready(&mut self, jobs: usize) -> Result<(), SearchError> {
        for _ in 0..jobs {
            match self.answered.recv() {
                Ok(Answer::Ready(result)) => result?,
                _ => return Err(SearchError::Stopped),
            }
        }
        Ok(())
    }

    /// Sends out images of the dense pipeline.
    pub(super) fn send_dense(&mut self, number: u64, shots: &[Shot]) {
        let mut amplify = Amplify::default();
        amplify.weight.value = AmplifyWeight::Constant(0.0);
        let networks = Networks { unets: Unets::Dense, fed: Arc::default(), amplify };
        self.send(number, Settings::new(), shots, networks, TrialGraph::none());
    }

    /// Returns how many trials have images out.
    pub(super) fn out(&self) -> usize {
        self.running.iter().filter(|trial| trial.left > 0).count()
    }

    pub(super) fn push(&mut self, number: u64, settings: Settings, work: Work) {
        self.running.push_back(Running { number, settings, work, left: 0, shots: Vec::new() });
    }

    pub(super) fn send(
        &mut self,
        number: u64,
        settings: Settings,
        shots: &[Shot],
        networks: Networks,
        graph: TrialGraph,
    ) {
        let failed = Arc::new(Mutex::new(None));
        let networks = Arc::new(networks);
        self.queue.put(shots.iter().enumerate().map(|(index, shot)| {
            let (networks, failed) = (Arc::clone(&networks), Arc::clone(&failed));
            Task { number, index, shot: shot.clone(), networks, failed }
        }));
        let (left, shots) = (shots.len(), vec![None; shots.len()]);
        let work = Work::Out { _graph: graph, failed };
        self.running.push_back(Running { number, settings, work, left, shots });
    }

    /// Waits for the trial that was begun first; `None` if there is none.
    pub(super) fn finish_first(&mut self) -> Result<Option<Running>, SearchError> {
        while self.running.front().is_some_and(|trial| trial.left > 0) {
            match self.answered.recv().map_err(|_| SearchError::Stopped)? {
                Answer::Ready(_) => {}
                Answer::Skipped { number } => self.note(number, |_| {}),
                Answer::Shot { number, index, result: Ok(score) } => self.note(number, |trial| {
                    if let Some(shot) = trial.shots.get_mut(index) {
                        *shot = Some(score);
                    }
                }),
                Answer::Shot { result: Err(SearchError::Stopped), .. } => return Err(SearchError::Stopped),
                Answer::Shot { number, result: Err(_), .. } => self.note(number, |_| {}),
            }
        }
        Ok(self.running.pop_front())
    }

    fn note(&mut self, number: u64, set: impl FnOnce(&mut Running)) {
        if let Some(trial) = self.running.iter_mut().find(|trial| trial.number == number) {
            trial.left = trial.left.saturating_sub(1);
            set(trial);
        }
    }
}

impl Running {
    pub(super) fn scores(&self, over: Over) -> Scores {
        match &self.work {
            Work::Failed(scores) => scores.clone(),
            Work::Same(earlier) => Scores::failed(format!("trial {earlier} has no scores")),
            Work::Out { failed, .. } => match lock(failed).clone() {
                Some(why) => Scores::failed(why),
                None => {
                    let shots: Vec<ShotScore> = self.shots.iter().flatten().cloned().collect();
                    Scores::of(&shots, over)
                }
            },
        }
    }
}

/// Runs a worker's thread, which draws images until there are no more.
pub(super) fn work(
    open: &(dyn Fn(usize) -> Result<Worker, SearchError> + Sync),
    number: usize,
    queue: &Queue,
    answers: &Sender<Answer>,
    observer: &dyn Observer,
    times: &Mutex<WorkerTime>,
) {
    let mut worker = match open(number) {
        Ok(worker) => worker,
        Err(error) => {
            // The search may have ended.
            let _ = answers.send(Answer::Ready(Err(error)));
            return;
        }
    };
    let mut is_heard = answers.send(Answer::Ready(Ok(()))).is_ok();
    while is_heard && let Some(task) = queue.take(number) {
        let Task { number, index, shot, networks, failed } = task;
        let answer = if lock(&failed).is_some() {
            Answer::Skipped { number }
        } else {
            let result =
                worker.draw(&networks, &shot, observer).and_then(|image| worker.score(&image, &shot.prompt));
            let result = if observer.is_stopped() { Err(SearchError::Stopped) } else { result };
            if let Err(error) = &result {
                // A journal knows no names of files that are gone.
                let why = networks.unnamed(&error.to_string());
                lock(&failed).get_or_insert_with(|| format!("{:?} failed: {why}", shot.prompt));
            }
            Answer::Shot { number, index, result }
        };
        is_heard = answers.send(answer).is_ok();
    }
    lock(times).add(worker.time());
}
