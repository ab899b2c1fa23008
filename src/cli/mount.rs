//! `kvfs mount`: makes the backings ready, reads them, mounts, and serves until it's unmounted.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};

use super::background::{Parent, Side, split};
use super::settings::{self, Resolved};
use super::supervised::{Beginning, be_parent, by_systemd, notify};
use super::{Failure, logging};
use crate::backing;
use crate::config::{LogFormat, LogTo, MountConfig, Publish, Supervise};
use crate::control::{About, Context, Daemon, Drives, Jobs, Server, Upgrades, count_passed_through};
use crate::direct::Direct;
use crate::fs::{Fs, Options};
use crate::fuse::{Mounted, Session, UnmountError, choose_transport, detach_dead};
use crate::index::Progress;
use crate::io;
use crate::metrics;
use crate::placement::{Evidence, EvidenceConfig, Policies};
use crate::retention;
use crate::sandbox::{self, SandboxMode};
use crate::supervise::{Keeper, Watchdog};

/// `words`: a whole `kvfs mount` line, the program first.
pub(super) fn run(words: Vec<OsString>) -> Result<(), Failure> {
    match settings::resolve(&words) {
        Ok(said) => mount(said),
        // systemd starts a daemon with the unit's line each time; one that goes on doesn't depend on it.
        Err(failure) => match by_systemd()? {
            Some(beginning) if beginning.started().is_some() => serve_as(Err(failure), beginning),
            _ => Err(failure),
        },
    }
}

/// Mounts by options that are complete.
pub(super) fn mount(said: Resolved) -> Result<(), Failure> {
    let args = &said.args;
    if let Some(beginning) = args.supervised.begin()? {
        return serve_as(Ok(said), beginning);
    }
    if args.foreground
        && args.supervise == Supervise::Auto
        && let Some(beginning) = by_systemd()?
    {
        return serve_as(Ok(said), beginning);
    }
    let point = args.mount_point()?;
    if detach_dead(point)? {
        eprintln!(
            "kvfs: the mount at {} was dead, its daemon has ended without unmounting it; it's detached",
            point.display()
        );
    }
    let config = args.config(false)?;
    if args.foreground {
        // systemd knows this process and keeps nothing for it (before 254, or FileDescriptorStoreMax=0).
        let notify = notify()?;
        let is_parent = match args.supervise {
            Supervise::Auto => notify.is_some(),
            told => told == Supervise::On,
        };
        if !is_parent {
            let log = args.log_to()?;
            let mut beginning = Beginning::alone(Parent::systemd(notify));
            return serve(&config, (&log, args.log_format), &mut beginning);
        }
        return end_as(be_parent(&said.words, None, None));
    }
    let log = args.log_to()?;
    let here = std::env::current_dir().ok();
    match split()? {
        Side::Parent(Ok(())) => answers(&config),
        Side::Parent(Err(failure)) => Err(failure),
        Side::Child(parent) if args.supervise != Supervise::Off => {
            end_as(be_parent(&said.words, parent.into_pipe(), here))
        }
        Side::Child(parent) => {
            let mut beginning = Beginning::alone(parent);
            tell(serve(&config, (&log, args.log_format), &mut beginning), &mut beginning)
        }
    }
}

/// Serves as a daemon that is, or may be, one of several.
///
/// One that goes on does so with the words that the mount was started with: a file may have changed since.
fn serve_as(said: Result<Resolved, Failure>, mut beginning: Beginning) -> Result<(), Failure> {
    let supervised = said.as_ref().map(|said| said.args.supervised.clone()).unwrap_or_default();
    let said = beginning.started().map_or(said, |words| settings::resolve(&words));
    let configured = said.and_then(|Resolved { args, words }| {
        let config = args.config(beginning.device.is_some())?;
        beginning.keep_started(&words);
        Ok((config, args.log_to()?, args.log_format))
    });
    supervised.let_go();
    let served = configured.and_then(|(config, log, format)| serve(&config, (&log, format), &mut beginning));
    tell(served, &mut beginning)
}

/// Has a failure said by whom the operator hears.
fn tell(served: Result<(), Failure>, beginning: &mut Beginning) -> Result<(), Failure> {
    match served {
        // Told through the first process: its sentence is the only one.
        Err(failure) if beginning.parent.failed(&failure) => std::process::exit(failure.status.into()),
        Err(failure) => {
            tracing::error!("{failure}");
            Err(failure)
        }
        Ok(()) => Ok(()),
    }
}

/// Ends with the status of the daemon, which has said why.
fn end_as(status: Result<u8, Failure>) -> Result<(), Failure> {
    match status? {
        0 => Ok(()),
        status => std::process::exit(status.into()),
    }
}

/// The last proof, from outside: the mount answers and is FUSE.
fn answers(config: &MountConfig) -> Result<(), Failure> {
    let point = &config.mount_point;
    match rustix::fs::statfs(point) {
        // FUSE_SUPER_MAGIC, include/uapi/linux/magic.h
        Ok(stat) if stat.f_type == 0x6573_5546 => Ok(()),
        Ok(_) => {
            Err(Failure::other(format!("{} is not mounted, though the daemon says so", point.display())))
        }
        Err(e) => Err(Failure::other(format!("the mount at {} doesn't answer: {e}", point.display()))),
    }
}

fn serve(
    config: &MountConfig,
    (log, format): (&LogTo, LogFormat),
    beginning: &mut Beginning,
) -> Result<(), Failure> {
    let limit = raise_file_limit();
    // Before any thread: all inherit that these are waited for by one of them alone.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    signals.thread_block().map_err(Failure::other)?;

    let evidence = Arc::new(Evidence::new(evidence_config(config)));
    let no_such_gpus = evidence.check_map().map_err(Failure::bad_value)?;
    let transport = choose_transport(config.transport, beginning.survival.state.is_some())?;
    let (backings, made) = beginning.backings(config)?;
    logging::start(log, format)?;
    crate::version::test_point("start");
    for gpu in no_such_gpus {
        tracing::warn!("--gpu-map: this server has no GPU {gpu}; what is said of it has no effect");
    }
    // With all capabilities, for a port below 1024. One that takes over gets it later: it fails for nothing.
    let metrics_at = config.metrics.as_ref().filter(|_| beginning.device.is_none());
    let metrics_at = metrics_at.map(metrics::Listener::bind).transpose()?;
    // Before any thread, and after what is the operator's own: backings and log have the operator's umask.
    crate::fs::prepare_process();
    if config.sandbox == SandboxMode::Auto {
        sandbox::drop_capabilities();
    }
    let watchdog = Watchdog::start().map_err(Failure::other)?;
    let (engine, io_engine_why) =
        io::engine(config.threads.get().min(4), &beginning.survival.lifeline).map_err(Failure::other)?;
    for backing in backings.iter().filter(|b| !b.is_locked() && !b.health.is_out()) {
        tracing::warn!(
            "backing {}: its file system has no locks, so nothing keeps a mount without :shared away from it",
            backing.path.display()
        );
    }
    let (open_dirs, idle_files) = (share_of(limit, 8, 16384), share_of(limit, 32, 4096));
    let options = Options {
        exclusive: config.exclusive,
        policies: Policies::new(&config.placement, evidence)?,
        retention: config.retention,
        shared_ttl: config.shared_ttl,
        open_dirs,
        idle_files,
        open_files: open_files(limit, open_dirs, idle_files),
        on_close: config.publish == Publish::OnClose,
        survival: beginning.survival.clone(),
    };
    let fs = Arc::new(Fs::new(backings, options, engine, show_progress()).map_err(Failure::other)?);
    let looked_at = fs.clone();
    watchdog.looks_at(move || looked_at.come_past());
    let direct = Direct::new(fs.clone(), config.direct.clone()).map_err(Failure::other)?;
    let survival = &beginning.survival;
    let session = match beginning.device.take() {
        Some(device) => Session::take_over(&fs, &direct, config, transport, survival, device)?,
        None => Session::start(&fs, &direct, config, transport, survival).inspect_err(|_| fs.withdraw())?,
    };
    let recovered = fs.recover(session.registry(), beginning.kept.files());
    let buffers = direct.recover(&mut beginning.kept);
    survival.lifeline.listen(&survival.keeper).map_err(Failure::other)?;
    tell_scan(&fs);
    fs.set_invalidator(session.invalidator());
    fs.set_data_changed(session.data_changed());
    session.names_changed().and_then(|tell| fs.set_names_changed(tell)).map_err(Failure::other)?;
    let context = Arc::new(Context {
        fs: fs.clone(),
        direct: direct.clone(),
        mount_point: config.mount_point.clone(),
        defaults: config.defaults,
        decide: Box::new(session.decider(config.passthrough)),
    });
    let drives = Drives::start(context.clone(), config.drive_timeout).map_err(Failure::other)?;
    let jobs = Jobs::new(context, drives.clone());
    let upgrades = Upgrades::new(fs.clone(), direct.clone(), jobs.clone(), survival.clone());
    let mounted = session.mounted();
    if let Err(e) = direct.serve_socket(mounted.point.clone(), mounted.device) {
        tracing::warn!("no socket for descriptors in the mount: {e}");
    }
    count_passed_through(&fs, mounted.device, config.metrics.is_some());
    // Whatever needs more than the daemon has from here on has been started.
    let sandbox = enter_sandbox(config.sandbox, &mounted);
    let about = About {
        mountpoint: config.mount_point.clone(),
        since: Instant::now(),
        log: logging::describe(log),
        sandbox,
        transport: session.transport().clone(),
        io_engine_why,
        supervised: beginning.status(recovered, buffers),
    };
    let daemon = Daemon { fs: fs.clone(), direct: direct.clone(), jobs: jobs.clone(), upgrades, about };
    let daemon = Arc::new(daemon);
    let told = daemon.clone();
    let control = Server::start(mounted.device, move |question, fd| told.answer(question, fd))
        .map_err(|e| Failure::other(format!("the control socket can't be made: {e}")))
        .inspect_err(|_| mounted.detach())?;
    let metrics = config.metrics.clone().map(|address| {
        let content = move || metrics::encode(&daemon.stats().0.metrics);
        metrics::Server::start(address, metrics_at, content)
    });
    let metrics = metrics.transpose().map_err(Failure::other).inspect_err(|_| mounted.detach())?;
    let running = session.serve().inspect_err(|_| mounted.detach())?;
    let evictor = retention::start(fs.retention.clone(), fs.clone())
        .map_err(Failure::other)
        .inspect_err(|_| mounted.detach())?;
    // Nothing fails from here on: what was made for the mount stays.
    made.keep();
    unmount_on_signal(signals, mounted.clone(), survival.keeper.clone());
    match &survival.state {
        Some(state) if state.is_recovered() => tracing::warn!(
            "daemon {} of {}: took over from one that {}; {} open files and {} buffers go on, {} files could not be found again",
            state.starts(),
            config.mount_point.display(),
            beginning.kept.how(),
            recovered.handles,
            buffers.buffers,
            recovered.lost
        ),
        _ => tracing::info!("mounted at {}", config.mount_point.display()),
    }
    beginning.settle_upgrade();
    beginning.parent.ready();
    survival.keeper.ready();
    // Written and synced: nobody waits for that.
    backing::remember_members(&fs.backings());
    fs.start_checkpoints();
    let rules = fs.clone();
    std::thread::spawn(move || rules.serve_rules());
    jobs.resume();
    let ended = running.wait();
    drives.stop();
    jobs.stop();
    direct.shutdown();
    drop((control, metrics));
    fs.retention.stop();
    let _ = evictor.join();
    fs.end_checkpoints();
    fs.end_keeping();
    tracing::info!("unmounted from {}", config.mount_point.display());
    ended.map_err(|e| Failure::other(format!("the session ended with an error: {e}")))
}

fn enter_sandbox(mode: SandboxMode, mounted: &Mounted) -> String {
    match if mode == SandboxMode::Off { Ok(()) } else { mounted.before_sandbox() } {
        Ok(()) => sandbox::enter(mode),
        Err(e) => {
            tracing::warn!("going on without a sandbox, in which nothing could unmount: {e}");
            format!("off (nothing could unmount in it: {e})")
        }
    }
}

fn evidence_config(config: &MountConfig) -> EvidenceConfig {
    let evidence = EvidenceConfig { gpu_map: config.gpu_map.clone(), ..EvidenceConfig::default() };
    // A driver for the tests: its files, and its library if it has one.
    #[cfg(feature = "fault-points")]
    if let Some(driver) = std::env::var_os("KVFS_TEST_DRIVER_ROOT").map(std::path::PathBuf::from) {
        let nvml = Some(driver.join("libnvidia-ml.so.1"));
        return EvidenceConfig { driver_root: driver, nvml, ..evidence };
    }
    evidence
}

/// SIGTERM and SIGINT unmount; a busy mount goes on, and says so.
fn unmount_on_signal(signals: SigSet, mounted: Arc<Mounted>, keeper: Arc<Keeper>) {
    std::thread::spawn(move || {
        loop {
            match signals.wait() {
                Ok(Signal::SIGTERM | Signal::SIGINT) => match mounted.unmount(false) {
                    Ok(()) => {}
                    Err(UnmountError::NotMounted(_)) => keeper.mount_anew(),
                    Err(e) => tracing::warn!("not unmounted on this signal: {e}"),
                },
                // A terminal that closes is no reason to go.
                Ok(_) => {}
                Err(e) => tracing::warn!("waiting for signals: {e}"),
            }
        }
    });
}

/// As many open files as the system allows: directories and files are kept open.
pub(super) fn raise_file_limit() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    #[cfg(feature = "fault-points")]
    if let Some(limit) = std::env::var("KVFS_TEST_FILE_LIMIT").ok().and_then(|n| n.parse().ok()) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, limit, limit);
        return limit;
    }
    // Root may go beyond the hard limit, up to the kernel's own.
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|n| n.trim().parse().ok());
    [most.unwrap_or(hard), hard]
        .into_iter()
        .find(|limit| setrlimit(Resource::RLIMIT_NOFILE, *limit, *limit).is_ok())
        .unwrap_or(soft)
}

fn share_of(limit: u64, part: u64, most: u64) -> NonZeroUsize {
    NonZeroUsize::new((limit / part).clamp(16, most) as usize).unwrap_or(NonZeroUsize::MIN)
}

/// Descriptors for clients' open files: what is left by directories, by files that are idle, removed, moved and
/// evicted (five times `idle`), and by a quarter for everything else.
fn open_files(limit: u64, dirs: NonZeroUsize, idle: NonZeroUsize) -> NonZeroUsize {
    let kept = dirs.get() as u64 + 5 * idle.get() as u64;
    share_of((limit - limit / 4).saturating_sub(kept), 1, u64::MAX)
}

/// Progress of the scan, on a terminal.
fn show_progress() -> impl FnMut(Progress) {
    let terminal = std::io::stderr().is_terminal();
    let mut shown = false;
    move |progress: Progress| {
        // A scan that is over before anyone could read this needs no line.
        if terminal && (shown || progress.elapsed.as_millis() > 300) {
            shown = true;
            let _ = write!(
                std::io::stderr(),
                "\rreading the backings: {} names in {:.1} s ",
                progress.names,
                progress.elapsed.as_secs_f64()
            );
        }
    }
}

fn tell_scan(fs: &Fs) {
    let report = fs.scan_report();
    if std::io::stderr().is_terminal() && report.elapsed.as_millis() > 300 {
        eprintln!();
    }
    tracing::info!(
        "read {} names from {} backings in {} ms, {} not readable",
        report.names,
        fs.backings().len(),
        report.elapsed.as_millis(),
        report.unreadable()
    );
    for problem in report.problems.iter().take(20) {
        if let Some(backing) = fs.backings().get(problem.slot) {
            tracing::warn!("backing {}: skipped {problem}", backing.path.display());
        }
    }
}
