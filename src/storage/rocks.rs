//! The durable engine: RocksDB. No other file names it.
//!
//! All families share one write-ahead log, so one sync serves every group on the node.

use std::{
    io,
    ops::ControlFlow,
    path::Path,
    sync::{Arc, Condvar, Mutex, PoisonError, RwLock},
    time::Duration,
};

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB,
    DBCompressionType, DBRecoveryMode, Direction, ErrorKind, IteratorMode, LogLevel, Options,
    ReadOptions, Snapshot, WriteBatch,
};

use super::{
    OpenError,
    engine::{Batch, Engine, Family, Order, Reads, Visit, Write},
};

const MIB: usize = 1024 * 1024;
/// One journal buffer. Few enough flushes at full load, small enough for three nodes a process.
const JOURNAL_BUFFER_BYTES: usize = 16 * MIB;
/// One buffer of the machines' state: so large that keys which are written again and again are
/// overwritten in it, and so small that a node with long logs stays below 200 MiB.
const STATE_BUFFER_BYTES: usize = 16 * MIB;
const META_BUFFER_BYTES: usize = 2 * MIB;
/// All families' buffers together.
const ALL_BUFFERS_BYTES: usize = 48 * MIB;
/// Past this, RocksDB flushes the family that pins the oldest log file: a vote that is rarely
/// written must not keep every log file, and replaying this much at open takes under a second.
const WAL_BYTES_MAX: u64 = 128 * MIB as u64;
/// The journal's, and the same again for the rest: both are read at a start, and by laggards.
const BLOCK_CACHE_BYTES: usize = 4 * MIB;
/// The state's own: its blocks, their indexes and filters. A machine reads at random.
const STATE_CACHE_BYTES: usize = 24 * MIB;
/// Read at once of each file that is being compacted. The default is made for turning disks, and
/// costs four times the memory.
const COMPACTION_READ_BYTES: usize = 512 * 1024;
/// Of a filter, for each key: one read in a hundred for a key that is not there looks in vain.
const STATE_FILTER_BITS: f64 = 10.0;
const OPEN_FILES_MAX: i32 = 256;
const BACKGROUND_JOBS: i32 = 2;

/// How long closing waits for reads that are under way. They are short; after this the database
/// closes with the last of them.
const READS_END_WITHIN: Duration = Duration::from_secs(10);

/// RocksDB with our families open. Empty once closed.
///
/// The lock is held only to take a handle: a read may be made inside another one, and waiting there
/// for a lock that waits for the outer read would never end.
pub(super) struct Rocks {
    open: RwLock<Option<Arc<Open>>>,
    closed: Arc<Closed>,
}

/// The database, and behind it who is told that it is closed. The order of the fields is that of
/// their ends.
struct Open {
    db: DB,
    _tell: TellClosed,
}

#[derive(Default)]
struct Closed {
    is: Mutex<bool>,
    told: Condvar,
}

struct TellClosed(Arc<Closed>);

impl Drop for TellClosed {
    fn drop(&mut self) {
        *self.0.is.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.told.notify_all();
    }
}

impl Rocks {
    pub(super) fn open(dir: &Path) -> Result<Self, OpenError> {
        Self::open_families(dir, &Family::ALL)
    }

    /// Makes those that are not there; refuses if others are.
    pub(super) fn open_families(dir: &Path, families: &[Family]) -> Result<Self, OpenError> {
        let families = families
            .iter()
            .map(|it| ColumnFamilyDescriptor::new(it.name(), family_options(*it)));
        let closed = Arc::<Closed>::default();
        match DB::open_cf_descriptors(&database_options(), dir, families) {
            Ok(db) => {
                let open = Open {
                    db,
                    _tell: TellClosed(Arc::clone(&closed)),
                };
                Ok(Self {
                    open: RwLock::new(Some(Arc::new(open))),
                    closed,
                })
            }
            Err(error) if error.kind() == ErrorKind::Corruption => {
                Err(OpenError::Corrupt(format!("{}: {error}", dir.display())))
            }
            Err(error) => Err(OpenError::Io(io_error(error))),
        }
    }

    fn with<T>(&self, use_it: impl FnOnce(&DB) -> Result<T, rocksdb::Error>) -> io::Result<T> {
        let open = self
            .open
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let open = open.ok_or_else(|| io::Error::other("the database is closed"))?;
        use_it(&open.db).map_err(io_error)
    }
}

impl Engine for Rocks {
    fn write(&self, batch: &Batch) -> io::Result<()> {
        self.with(|db| {
            let mut out = WriteBatch::with_capacity_bytes(batch.len() + batch.len() / 8 + 64);
            for (family, write) in batch.iter() {
                let family = column(db, family);
                match write {
                    Write::Put(key, value) => out.put_cf(family, key, value),
                    Write::Delete(key) => out.delete_cf(family, key),
                    Write::DeleteRange(from, to) => out.delete_range_cf(family, from, to),
                }
            }
            db.write(out)
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|db| db.flush_wal(true))
    }

    fn value(&self, family: Family, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.with(|db| db.get_cf(column(db, family), key))
    }

    fn scan(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        order: Order,
        visit: Visit<'_>,
    ) -> io::Result<()> {
        if from >= to {
            return Ok(());
        }
        self.with(|db| {
            let (options, mode) = bounded(from, to, order);
            visit_all(db.iterator_cf_opt(column(db, family), options, mode), visit)
        })
    }

    fn at_one_moment(&self, read: &mut dyn FnMut(&dyn Reads)) -> io::Result<()> {
        self.with(|db| {
            let snapshot = db.snapshot();
            read(&Moment { db, snapshot });
            Ok(())
        })
    }

    fn is_durable(&self) -> bool {
        true
    }

    fn close(&self) {
        let open = self
            .open
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(open) = open else { return };
        open.db.cancel_all_background_work(true);
        drop(open);
        let closed = self
            .closed
            .is
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .closed
            .told
            .wait_timeout_while(closed, READS_END_WITHIN, |closed| !*closed);
        if waited.is_ok_and(|(_, timeout)| timeout.timed_out()) {
            tracing::warn!("somebody still reads: the database closes once they have ended");
        }
    }
}

/// A snapshot, for the length of a call.
struct Moment<'a> {
    db: &'a DB,
    snapshot: Snapshot<'a>,
}

impl Reads for Moment<'_> {
    fn value(&self, family: Family, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let value = self.snapshot.get_cf(column(self.db, family), key);
        value.map_err(io_error)
    }

    fn scan(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        order: Order,
        visit: Visit<'_>,
    ) -> io::Result<()> {
        if from >= to {
            return Ok(());
        }
        let (options, mode) = bounded(from, to, order);
        let family = column(self.db, family);
        let items = self.snapshot.iterator_cf_opt(family, options, mode);
        visit_all(items, visit).map_err(io_error)
    }
}

/// Both bounds: so a seek never walks the tombstones of what was purged or truncated.
fn bounded<'a>(from: &'a [u8], to: &[u8], order: Order) -> (ReadOptions, IteratorMode<'a>) {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(from);
    options.set_iterate_upper_bound(to);
    let mode = match order {
        Order::Ascending => IteratorMode::From(from, Direction::Forward),
        Order::Descending => IteratorMode::End,
    };
    (options, mode)
}

fn visit_all<K: AsRef<[u8]>>(
    items: impl Iterator<Item = Result<(K, K), rocksdb::Error>>,
    visit: Visit<'_>,
) -> Result<(), rocksdb::Error> {
    for item in items {
        let (key, value) = item?;
        if let ControlFlow::Break(()) = visit(key.as_ref(), value.as_ref()) {
            break;
        }
    }
    Ok(())
}

fn database_options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    // A torn tail is an honest crash; damage before the tail must refuse to open. The default
    // would stop the replay there and silently drop what was acknowledged after it.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_unordered_write(false);
    // The flusher alone decides when the log reaches the disk.
    options.set_wal_bytes_per_sync(0);
    options.set_max_total_wal_size(WAL_BYTES_MAX);
    options.set_db_write_buffer_size(ALL_BUFFERS_BYTES);
    // Table files are written out as they grow: one great sync at their end would stall the log's.
    options.set_bytes_per_sync(MIB as u64);
    options.set_compaction_readahead_size(COMPACTION_READ_BYTES);
    options.set_max_background_jobs(BACKGROUND_JOBS);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(4);
    options.set_max_log_file_size(4 * MIB);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_skip_stats_update_on_db_open(true);
    options
}

fn family_options(family: Family) -> Options {
    let mut options = Options::default();
    let mut table = BlockBasedOptions::default();
    let cache_bytes = match family {
        Family::Journal | Family::Meta => BLOCK_CACHE_BYTES,
        Family::State => STATE_CACHE_BYTES,
    };
    table.set_block_cache(&Cache::new_lru_cache(cache_bytes));
    if family != Family::Meta {
        // In the cache, so that a long journal or a large state does not take memory without a
        // limit.
        table.set_cache_index_and_filter_blocks(true);
        table.set_pin_l0_filter_and_index_blocks_in_cache(true);
        // In parts: whole, the index of one large file is larger than a shard of the cache, and
        // would be read and decompressed again for every key.
        table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    }
    if family == Family::State {
        table.set_bloom_filter(STATE_FILTER_BITS, false);
        table.set_partition_filters(true);
    }
    options.set_block_based_table_factory(&table);
    // Levels, without FIFO or a time to live: nothing but a purge may drop an entry.
    match family {
        Family::Journal => {
            options.set_write_buffer_size(JOURNAL_BUFFER_BYTES);
            options.set_max_write_buffer_number(3);
            // Short-lived: what is purged soon is not worth compressing; what stays is.
            options.set_compression_per_level(&[
                DBCompressionType::None,
                DBCompressionType::None,
                DBCompressionType::Lz4,
                DBCompressionType::Lz4,
                DBCompressionType::Lz4,
                DBCompressionType::Lz4,
                DBCompressionType::Lz4,
            ]);
        }
        Family::Meta => {
            options.set_write_buffer_size(META_BUFFER_BYTES);
            options.set_compression_type(DBCompressionType::None);
        }
        Family::State => {
            options.set_write_buffer_size(STATE_BUFFER_BYTES);
            options.set_max_write_buffer_number(3);
            options.set_compression_type(DBCompressionType::Lz4);
        }
    }
    options
}

/// Every family is named when the database is opened, so it is there as long as the database is.
fn column(db: &DB, family: Family) -> &ColumnFamily {
    db.cf_handle(family.name())
        .expect("all families are opened with the database")
}

fn io_error(error: rocksdb::Error) -> io::Error {
    let kind = match error.kind() {
        ErrorKind::Corruption => io::ErrorKind::InvalidData,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, format!("RocksDB: {error}"))
}
