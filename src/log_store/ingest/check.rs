//! What is found out about operations before they are proposed.

use super::{Chunk, Fate};
use crate::{
    log_store::{
        error::{ChainRefused, LogError, LogRefused, Outcome, Refusal},
        operation::{self, Operation, Refused, Topic},
        reader,
    },
    machine::TableView,
};

/// Finds out which of a chunk's own need not be proposed. Blocking.
pub(super) fn check(mut chunk: Chunk, view: &TableView, topic: Topic) -> Result<Chunk, LogError> {
    let asked = chunk.ours();
    let operations = chunk.at(&asked);
    for (at, known) in asked.into_iter().zip(judge(&operations, view, topic)?) {
        if let Some(outcome) = known {
            chunk.fates[at] = Fate::Known(outcome);
        }
    }
    Ok(chunk)
}

/// What is known of operations without a proposal: those that are held, and those that break a
/// rule, their signatures among them. Nothing that was not asked about here is proposed. Blocking.
pub(super) fn judge(
    operations: &[Operation],
    view: &TableView,
    topic: Topic,
) -> Result<Vec<Option<Outcome>>, LogError> {
    let ids = operations.iter().map(Operation::id);
    let authors = operations.iter().map(Operation::author);
    let (record, numbers, strangers) = view.read(|moment| {
        let record = reader::topic(moment, topic)?;
        let strangers = reader::strangers(moment, topic, authors)?;
        Ok::<_, std::io::Error>((record, reader::numbers(moment, ids)?, strangers))
    })??;
    let line = record.filter(|it| it.next > 0).map(|it| it.line);
    let looked_up = operations.iter().zip(numbers).map(|(operation, number)| {
        let refused = if let Some(number) = number {
            return Some(Outcome::Held { number });
        } else if let Some(line) = line.filter(|it| *it != operation.line()) {
            Refusal::Topic(LogRefused::OtherLine { line })
        } else if strangers.contains(&operation.author()) {
            ChainRefused::TooManyAuthors.into()
        } else {
            Refusal::Invalid(lacks_body(operation)?)
        };
        Some(Outcome::Refused(refused))
    });
    let mut known: Vec<Option<Outcome>> = looked_up.collect();
    let unknown = || (0..operations.len()).filter(|at| known[*at].is_none());
    let unchecked: Vec<Operation> = unknown().map(|at| operations[at].clone()).collect();
    let places: Vec<usize> = unknown().collect();
    for (at, checked) in places.into_iter().zip(operation::verify_all(&unchecked)) {
        if let Err(refused) = checked {
            known[at] = Some(Outcome::Refused(Refusal::Invalid(refused)));
        }
    }
    Ok(known)
}

/// An id names the header alone, so an operation that is held without its body stays without.
fn lacks_body(operation: &Operation) -> Option<Refused> {
    let size = operation.payload_size();
    (size > 0 && operation.body().is_none()).then_some(Refused::BodyMissing { size })
}
