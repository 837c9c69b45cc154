//! A parallel scan: reads every byte of a pool once, on all threads, in pieces that stay in the cache.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rayon::prelude::*;

use super::{FloatType, MagnitudeError, PoolTensor};
use crate::{
    observer::{Observer, Progress, Stage},
    onnx::OnnxError,
};

/// Bytes read at once. Half of a usual second-level cache, so that what the system copies there is still there when
/// it is counted.
pub(super) const PIECE: usize = 256 << 10;

/// Gives each piece of `tensors` to one of several states that `new` makes, one a thread, and returns the states.
/// Pieces hold whole elements; which state sees which piece is not defined.
pub(super) fn scan<S: Send>(
    tensors: &[&PoolTensor],
    observer: &dyn Observer,
    new: impl Fn() -> S + Sync,
    visit: impl Fn(&mut S, FloatType, &[u8]) + Sync,
) -> Result<Vec<S>, MagnitudeError> {
    let pieces = pieces(tensors)?;
    let progress = Progress::new(observer, Stage::Ranking);
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let work = || {
        let mut state = new();
        let mut buffer = vec![0; pieces.iter().map(|p| p.len).max().unwrap_or(0)];
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            if stop.load(Ordering::Relaxed) {
                return Err(MagnitudeError::Stopped);
            }
            let bytes = &mut buffer[..piece.len];
            piece.tensor.reader.read_at(piece.at, bytes)?;
            visit(&mut state, piece.float, bytes);
            progress.advance(piece.len as u64)?;
        }
        Ok(state)
    };
    let threads = rayon::current_num_threads().min(pieces.len());
    let states: Vec<Result<S, MagnitudeError>> = (0..threads)
        .into_par_iter()
        .map(|_| work().inspect_err(|_| stop.store(true, Ordering::Relaxed)))
        .collect();
    // A thread that failed by itself says more than those that it stopped.
    let mut stopped = false;
    let mut good = Vec::with_capacity(states.len());
    for state in states {
        match state {
            Ok(state) => good.push(state),
            Err(MagnitudeError::Stopped) => stopped = true,
            Err(other) => return Err(other),
        }
    }
    if stopped { Err(MagnitudeError::Stopped) } else { Ok(good) }
}

/// A range of bytes of one tensor.
struct Piece<'a> {
    tensor: &'a PoolTensor,
    float: FloatType,
    at: u64,
    len: usize,
}

fn pieces<'a>(tensors: &[&'a PoolTensor]) -> Result<Vec<Piece<'a>>, MagnitudeError> {
    let mut pieces = Vec::new();
    for tensor in tensors {
        let float = FloatType::try_from(tensor.data_type)?;
        let len = tensor.reader.len();
        if len % float.size() as u64 != 0 {
            let what = format!("its {len} bytes are not a whole number of {}", tensor.data_type.name());
            return Err(OnnxError::invalid("a weight", what).into());
        }
        pieces.extend((0..len).step_by(PIECE).map(|at| {
            let len = (len - at).min(PIECE as u64) as usize;
            Piece { tensor, float, at, len }
        }));
    }
    Ok(pieces)
}
