//! Confirmation: the best trials and the dense network once more, from noises that no trial began with. Noise that was
//! there when a trial was chosen flatters it.

use super::{Event, Found, Search, pool::WorkerPool};
use crate::search::{
    SearchError,
    confirmed::Confirmed,
    journal::{Confirmation, Journal, Subject},
};

impl Search<'_> {
    /// Confirms the best trials, where the space says so. `kept` are the journal's confirmations.
    pub(super) fn confirm(
        &mut self,
        kept: &[Confirmation],
        pool: &mut WorkerPool<'_>,
        journal: &mut Journal,
        found: &mut Found,
        listener: &mut impl FnMut(Event<'_>),
    ) -> Result<(), SearchError> {
        let space = self.bound.space;
        let Some(confirm) = space.confirm else { return Ok(()) };
        let best: Vec<Subject> = found
            .ranked()
            .into_iter()
            .take(confirm.best)
            .map(|record| Subject::Trial(record.trial))
            .collect();
        if best.is_empty() {
            return Ok(());
        }
        let all: Vec<Subject> = std::iter::once(Subject::Dense).chain(best).collect();
        let is_wanted = |one: &&Confirmation| one.noises == confirm.noises && all.contains(&one.confirmed);
        let mut confirmations: Vec<Confirmation> = kept.iter().filter(is_wanted).cloned().collect();
        let is_missing = |subject: &&Subject| confirmations.iter().all(|one| one.confirmed != **subject);
        let missing: Vec<Subject> = all.iter().filter(is_missing).copied().collect();
        listener(Event::Confirming { known: all.len() - missing.len(), all: all.len() });
        let mut waiting = missing.iter().zip(0..);
        for subject in &missing {
            // One more for each worker is made ready while they work.
            while pool.out() < 2 * found.times.jobs
                && let Some((subject, number)) = waiting.next()
            {
                self.begin(*subject, number, pool, found)?;
            }
            let Some(ended) = pool.finish_first()? else { break };
            let scores = ended.scores(space.over);
            let confirmation = Confirmation { confirmed: *subject, noises: confirm.noises, scores };
            journal.append(&confirmation)?;
            listener(Event::Confirmed(&confirmation));
            found.times.confirmations += 1;
            confirmations.push(confirmation);
        }
        found.confirmed = Some(Confirmed::of(space, &all, &confirmations));
        Ok(())
    }

    fn begin(
        &mut self,
        subject: Subject,
        number: u64,
        pool: &mut WorkerPool<'_>,
        found: &mut Found,
    ) -> Result<(), SearchError> {
        let trial = match subject {
            Subject::Dense => None,
            Subject::Trial(trial) => found.records.iter().find(|record| record.trial == trial),
        };
        match trial {
            None => pool.send_dense(number, self.fresh),
            Some(record) => {
                let settings = self.bound.settings_from_json(&record.values)?;
                self.send(number, settings, self.fresh, pool, found)?;
            }
        }
        Ok(())
    }
}
