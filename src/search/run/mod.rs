//! The search loop: trials one after the other as the strategy asks for them, their images spread over workers.

mod confirm;
mod pool;
mod queue;

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use self::{
    pool::{Answer, Work, WorkerPool, work},
    queue::Queue,
};
use super::{
    SearchError,
    compile::{Compiler, TrialGraph},
    confirmed::Confirmed,
    journal::{Confirmation, Dense, FORMAT, Header, Journal, Record},
    space::{Bound, Settings, StrategySpec, settings_json},
    strategy::{Annealing, Asked, Grid, RandomSampling, Strategy},
    trial::{Networks, Scores, Shot, Worker, WorkerTime},
};
use crate::observer::Observer;

/// The number of failed trials at the start, with no other, that ends a search.
const FAILURES: u64 = 5;

/// The inputs of a search.
pub struct Search<'a> {
    /// The space.
    pub bound: &'a Bound<'a>,
    /// The images of each trial.
    pub shots: &'a [Shot],
    /// The images by which the best trials are confirmed, where the space says that they are.
    pub fresh: &'a [Shot],
    /// Makes the graphs.
    pub compiler: &'a mut Compiler,
    /// Makes workers: called once in each worker's thread, with its number.
    pub worker: &'a (dyn Fn(usize) -> Result<Worker, SearchError> + Sync),
    /// How many workers.
    pub jobs: usize,
    /// Observes the pipelines of all workers and the compiler, and stops them.
    pub observer: &'a dyn Observer,
}

/// An event of a running search.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// Trials that were in the journal already.
    Resumed(usize),
    /// The dense pipeline was scored.
    Dense(&'a Scores),
    /// A trial ended.
    Trial(&'a Record),
    /// The budget is used up: so many networks are to be confirmed, of which some are in the journal already.
    Confirming {
        /// Those in the journal.
        known: usize,
        /// All of them.
        all: usize,
    },
    /// A network was confirmed.
    Confirmed(&'a Confirmation),
}

/// Where the time of a search went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// All workers.
    pub workers: WorkerTime,
    /// Making graphs.
    pub compiling: Duration,
    /// From the first to the last trial.
    pub wall: Duration,
    /// How many workers there were.
    pub jobs: usize,
    /// How many trials were run, the dense one among them.
    pub trials: u64,
    /// How many confirmations were.
    pub confirmations: u64,
}

/// The result of a search.
#[derive(Clone, Debug)]
pub struct Found {
    /// The digest of the model.
    pub model: String,
    /// Its trials.
    pub records: Vec<Record>,
    /// The score of the dense pipeline.
    pub dense: Scores,
    /// The scores by which the best trials were confirmed, where the space says that they are and one worked.
    pub confirmed: Option<Confirmed>,
    /// Where the time went, since it was last started.
    pub times: Times,
}

impl Found {
    /// Returns the different trials that worked, the best first, of equal ones the first.
    pub fn ranked(&self) -> Vec<&Record> {
        let is_one = |record: &&Record| record.scores.failed.is_none() && record.same_as.is_none();
        let mut ranked: Vec<&Record> = self.records.iter().filter(is_one).collect();
        ranked.sort_by(|a, b| b.scores.score.total_cmp(&a.scores.score));
        ranked
    }

    /// Returns the trial whose plan is the result: the best by its confirmation or, in a search without one, by its score.
    pub fn best(&self) -> Option<&Record> {
        let Some(confirmed) = &self.confirmed else { return self.ranked().first().copied() };
        let best = confirmed.best()?.trial;
        self.records.iter().find(|record| record.trial == best)
    }
}

impl Search<'_> {
    /// Runs a search: takes the trials of the journal at `path`, runs more until the budget is used up, and confirms the
    /// best of them where the space says so.
    ///
    /// # Errors
    /// [`SearchError`]: the journal is not this search's, a worker cannot start, all of the first trials failed,
    /// [`SearchError::Stopped`].
    pub fn run(&mut self, path: &Path, mut listener: impl FnMut(Event<'_>)) -> Result<Found, SearchError> {
        let space = self.bound.space;
        let header = Header {
            journal: FORMAT,
            crdiff: env!("CARGO_PKG_VERSION").to_string(),
            space: space.digest(),
            model: self.compiler.digest()?,
            strategy: space.strategy.name().to_string(),
            seed: space.seed,
            images: self.shots.len(),
        };
        let (mut journal, kept) = Journal::open(path, &header)?;
        let mut strategy = strategy(self.bound);
        for record in &kept.records {
            let Asked::Point(point) = strategy.ask() else {
                return Err(SearchError::journal(path, "it has more trials than the strategy asks for"));
            };
            if settings_json(&self.bound.settings(&point)) != record.values {
                let what =
                    format!("the values of trial {} are not those that this search asks for", record.trial);
                return Err(SearchError::journal(path, what));
            }
            strategy.tell(record.scores.score);
        }
        listener(Event::Resumed(kept.records.len()));
        let started = Instant::now();
        let (jobs, observer, worker) = (self.jobs.max(1), self.observer, self.worker);
        let mut found = Found {
            model: header.model.clone(),
            records: kept.records,
            dense: Scores::failed("it was not run"),
            confirmed: None,
            times: Times { jobs, ..Times::default() },
        };
        let times = Mutex::new(WorkerTime::default());
        let queue = Queue::new(jobs);
        let result = thread::scope(|scope| {
            let (answers, answered) = mpsc::channel::<Answer>();
            for number in 0..jobs {
                let (queue, answers, times) = (&queue, answers.clone(), &times);
                scope.spawn(move || work(worker, number, queue, &answers, observer, times));
            }
            drop(answers);
            let mut pool = WorkerPool::new(&queue, answered);
            pool.ready(jobs)?;
            found.dense = match kept.dense {
                Some(dense) => dense,
                None => {
                    pool.send_dense(0, self.shots);
                    let dense = pool.finish_first()?.map(|dense| dense.scores(space.over));
                    let dense = dense.unwrap_or_else(|| Scores::failed("it was not run"));
                    journal.append(&Dense { dense: dense.clone() })?;
                    found.times.trials += 1;
                    dense
                }
            };
            listener(Event::Dense(&found.dense));
            self.trials(&mut *strategy, &mut pool, &mut journal, &mut found, &mut listener)?;
            self.confirm(&kept.confirmations, &mut pool, &mut journal, &mut found, &mut listener)
        });
        found.times.wall = started.elapsed();
        found.times.workers = times.into_inner().unwrap_or_else(PoisonError::into_inner);
        result.map(|()| found)
    }

    fn trials(
        &mut self,
        strategy: &mut dyn Strategy,
        pool: &mut WorkerPool<'_>,
        journal: &mut Journal,
        found: &mut Found,
        listener: &mut impl FnMut(Event<'_>),
    ) -> Result<(), SearchError> {
        let budget = self.bound.space.budget;
        let mut next = found.records.len() as u64;
        let spent: f64 = found.records.iter().filter_map(|record| record.seconds).sum();
        let mut spent = Duration::from_secs_f64(spent);
        let mut since = Instant::now();
        let mut is_done = false;
        loop {
            // A trial more for each worker is made ready while they work.
            while !is_done && pool.out() < 2 * found.times.jobs {
                let in_time = budget.time.is_none_or(|time| spent < time);
                if !in_time || budget.trials.is_some_and(|trials| next >= trials) {
                    is_done = true;
                    break;
                }
                match strategy.ask() {
                    Asked::Point(point) => {
                        let settings = self.bound.settings(&point);
                        self.start(next, settings, pool, found)?;
                        next += 1;
                    }
                    Asked::Wait => break,
                    Asked::Done => is_done = true,
                }
            }
            let Some(trial) = pool.finish_first()? else { return Ok(()) };
            let same_as = match &trial.work {
                Work::Same(earlier) => Some(*earlier),
                Work::Failed(_) | Work::Out { .. } => None,
            };
            let earlier = same_as.and_then(|earlier| found.records.iter().find(|r| r.trial == earlier));
            let scores = match earlier {
                Some(record) => record.scores.clone(),
                None => trial.scores(self.bound.space.over),
            };
            // Several are run at once: what each adds to the time of the search.
            let took = since.elapsed();
            since += took;
            spent += took;
            let record = Record {
                trial: trial.number,
                values: settings_json(&trial.settings),
                scores,
                same_as,
                seconds: budget.time.map(|_| took.as_secs_f64()),
            };
            strategy.tell(record.scores.score);
            journal.append(&record)?;
            listener(Event::Trial(&record));
            found.times.trials += 1;
            found.records.push(record);
            let count = found.records.len() as u64;
            if count == FAILURES && found.records.iter().all(|record| record.scores.failed.is_some()) {
                let what = found.records.last().and_then(|record| record.scores.failed.clone());
                return Err(SearchError::AllFailed { trials: count, what: what.unwrap_or_default() });
            }
        }
    }

    /// Begins a trial, unless its scores are known.
    fn start(
        &mut self,
        number: u64,
        settings: Settings,
        pool: &mut WorkerPool<'_>,
        found: &mut Found,
    ) -> Result<(), SearchError> {
        let values = settings_json(&settings);
        let ended = found.records.iter().find(|record| record.values == values).map(|record| record.trial);
        if let Some(earlier) = ended.or_else(|| pool.running(&settings)) {
            pool.push(number, settings, Work::Same(earlier));
            return Ok(());
        }
        self.send(number, settings, self.shots, pool, found)
    }

    /// Sends out images with the plan of `settings`, unless it can't be compiled.
    fn send(
        &mut self,
        number: u64,
        settings: Settings,
        shots: &[Shot],
        pool: &mut WorkerPool<'_>,
        found: &mut Found,
    ) -> Result<(), SearchError> {
        let started = Instant::now();
        let compiled = networks(self.bound, &settings, self.compiler, self.observer);
        found.times.compiling += started.elapsed();
        match compiled {
            Ok((networks, graph)) => pool.send(number, settings, shots, networks, graph),
            Err(SearchError::Stopped) => return Err(SearchError::Stopped),
            Err(error) => pool.push(number, settings, Work::Failed(Scores::failed(error))),
        }
        Ok(())
    }
}

/// Compiles the plan of `settings`.
///
/// # Errors
/// [`SearchError`] if it is no plan, or doesn't fit the model.
pub fn networks(
    bound: &Bound<'_>,
    settings: &Settings,
    compiler: &mut Compiler,
    observer: &dyn Observer,
) -> Result<(Networks, TrialGraph), SearchError> {
    let plan = bound.plan(settings).map_err(super::space::SpaceError::from)?;
    let graph = compiler.compile(&plan, observer).map_err(|error| match error {
        SearchError::Compile(crate::compile::CompileError::Stopped) => SearchError::Stopped,
        SearchError::Compile(crate::compile::CompileError::Plan(error)) => {
            SearchError::Space((*error).into())
        }
        other => other,
    })?;
    let (unets, fed) = (graph.unets.clone(), Arc::clone(&graph.fed));
    Ok((Networks { unets, fed, amplify: plan.amplify }, graph))
}

fn strategy(bound: &Bound<'_>) -> Box<dyn Strategy> {
    let (axes, seed) = (bound.axes.clone(), bound.space.seed);
    match bound.space.strategy {
        StrategySpec::Annealing(schedule) => Box::new(Annealing::new(axes, schedule, seed)),
        StrategySpec::Random => Box::new(RandomSampling::new(axes, seed)),
        StrategySpec::Grid => Box::new(Grid::new(axes)),
    }
}

/// Draws and scores the images of one trial, one after the other. Failures are in the scores.
///
/// # Errors
/// [`SearchError::Stopped`].
pub fn run_one(
    networks: &Networks,
    worker: &mut Worker,
    shots: &[Shot],
    over: super::space::Over,
    observer: &dyn Observer,
) -> Result<Scores, SearchError> {
    let mut scores = Vec::with_capacity(shots.len());
    for shot in shots {
        let scored =
            worker.draw(networks, shot, observer).and_then(|image| worker.score(&image, &shot.prompt));
        match scored {
            Ok(scored) => scores.push(scored),
            Err(SearchError::Stopped) => return Err(SearchError::Stopped),
            Err(error) => {
                let why = networks.unnamed(&error.to_string());
                return Ok(Scores::failed(format!("{:?} failed: {why}", shot.prompt)));
            }
        }
    }
    Ok(Scores::of(&scores, over))
}

/// Returns the plan that a trial's values make, as JSON.
///
/// # Errors
/// [`SearchError::Values`] if they are not the space's.
pub fn plan_of(bound: &Bound<'_>, values: &Value) -> Result<Value, SearchError> {
    Ok(bound.plan_json(&bound.settings_from_json(values)?))
}
