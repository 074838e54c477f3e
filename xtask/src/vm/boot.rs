//! Boots one machine, hands it a directory, and takes back what it did: no verdict, two verdicts or a kernel in trouble
//! are failures, whatever the exit code says.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::kernel::Kernel;
use super::root::remove;
use crate::process::{command, output, run, shown};
use crate::tally::{Said, Tally};

/// Room for what the guest leaves behind.
const OUTPUT_BYTES: u64 = 256 << 20;
/// A machine under KVM speaks within seconds, or not at all where the host only pretends to have KVM.
const FIRST_WORD: Duration = Duration::from_secs(90);
const VERDICT: &str = "writ-vm: verdict ";
/// What a kernel says when its other words cannot be trusted any more.
const TROUBLE: &[&str] = &[
    super::STALE_BREAKPOINT,
    "Kernel panic",
    "BUG:",
    "Oops:",
    "general protection fault",
    "KASAN:",
    "UBSAN:",
    "WARNING: CPU",
];
const KERNEL_ARGUMENTS: &str = "root=/dev/nvme0n1 rootfstype=ext4 rootwait rw console=ttyS0 panic=-1 quiet \
     systemd.show_status=false lsm=lockdown,yama,integrity,apparmor";
/// What an emulator that speculates nothing need not be kept from, by calls in the place of jumps that take it long.
const EMULATED_ARGUMENTS: &str = " mitigations=off";

/// What to run, and where to keep what came of it.
pub(crate) struct Job<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) image: &'a Path,
    /// Holds `run.sh`, and what that needs.
    pub(crate) input: &'a Path,
    /// Emptied first, so that no earlier result can pass for this one.
    pub(crate) results: &'a Path,
    pub(crate) timeout: Duration,
    pub(crate) cpus: u32,
    /// Whether the kernel has the BPF LSM, which is appended to Debian's default list: that may lack it (5.10).
    pub(crate) bpf_lsm: bool,
    /// Whether the guest may reboot; where it may not, a reboot ends the machine.
    pub(crate) reboots: bool,
}

/// What the guest did.
pub(crate) struct Outcome {
    pub(crate) exit_code: i32,
    pub(crate) printed: String,
}

impl Outcome {
    /// What the suite counted, and which tests failed; one that failed or succeeded without counting why is a failure.
    pub(crate) fn counted(&self) -> (Tally, Vec<String>) {
        let (mut tally, failed) = Said::of(&self.printed).counted();
        if self.exit_code != 0 && tally.failed == 0 {
            println!("    the suite ended with {} and counted no failed test", self.exit_code);
            tally += Tally::ONE_FAILURE;
        } else if self.exit_code == 0 && tally.passed == 0 {
            println!("    the suite ran no test");
            tally += Tally::ONE_FAILURE;
        }
        (tally, failed)
    }
}

/// Boots, waits, reads. An error is a machine whose answer cannot be trusted.
pub(crate) fn boot(job: &Job<'_>) -> Result<Outcome> {
    remove(job.results)?;
    fs::create_dir_all(job.results).with_context(|| format!("cannot create `{}`", job.results.display()))?;
    let (input, left, console) =
        (job.results.join("in.tar"), job.results.join("out.tar"), job.results.join("console.log"));
    run(command("tar").arg("-C").arg(job.input).arg("-cf").arg(&input).arg("."))?;
    fs::File::create(&left).and_then(|file| file.set_len(OUTPUT_BYTES)).context("cannot make the output disk")?;
    fs::File::create(&console).context("cannot make the console log")?;

    let mut accelerated = kvm_usable();
    let ended = loop {
        let mut qemu = qemu(job, &input, &left, &console, accelerated);
        let line = shown(&qemu);
        let child = qemu.stdin(Stdio::null()).spawn().with_context(|| format!("cannot run `{line}`"))?;
        match follow(child, &console, job.timeout, accelerated.then_some(FIRST_WORD)) {
            Ok(Ended::Silent) => {
                println!("    under KVM the machine says nothing; once more, emulated");
                SILENT.store(true, Ordering::Relaxed);
                accelerated = false;
            }
            Ok(Ended::Off) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    remove(&input)?;
    let text = String::from_utf8_lossy(&fs::read(&console).context("cannot read the console log")?).into_owned();
    ended?;

    let unpacked = output(command("tar").arg("-C").arg(job.results).arg("-xf").arg(&left))?;
    remove(&left)?;
    let code = fs::read_to_string(job.results.join("rc")).ok();
    if code.is_none() && !unpacked.status.success() {
        println!("    the output disk holds no archive: {}", String::from_utf8_lossy(&unpacked.stderr).trim());
    }
    let exit_code = judge(&text, code.as_deref())?;
    let printed = fs::read(job.results.join("out")).unwrap_or_default();
    Ok(Outcome { exit_code, printed: String::from_utf8_lossy(&printed).into_owned() })
}

fn qemu(job: &Job<'_>, input: &Path, left: &Path, console: &Path, accelerated: bool) -> Command {
    let mut qemu = command("qemu-system-x86_64");
    if accelerated {
        qemu.args(["-accel", "kvm", "-cpu", "host"]);
    } else {
        qemu.args(["-accel", "tcg,thread=multi"]);
    }
    qemu.args(["-m", "1536", "-smp", &job.cpus.to_string(), "-display", "none", "-nodefaults"]);
    if !job.reboots {
        qemu.arg("-no-reboot");
    }
    qemu.arg("-serial").arg(format!("file:{}", console.display()));
    // One NVMe for the root, which Debian's cloud kernels have built in, and virtio for the rest, which they have not:
    // with more than one NVMe the device names change from boot to boot.
    let mut disk = |id: &str, file: &Path, options: &str, device: &str| {
        qemu.arg("-drive").arg(format!("file={},if=none,id={id},format=raw{options}", file.display()));
        qemu.args(["-device", &format!("{device},drive={id}")]);
    };
    disk("root", job.image, ",snapshot=on", "nvme,serial=root");
    disk("in", input, ",readonly=on", "virtio-blk-pci");
    disk("out", left, "", "virtio-blk-pci");
    qemu.arg("-kernel").arg(&job.kernel.image).arg("-append");
    let (bpf, emulated) = (if job.bpf_lsm { ",bpf" } else { "" }, if accelerated { "" } else { EMULATED_ARGUMENTS });
    qemu.arg(format!("{KERNEL_ARGUMENTS}{bpf}{emulated}"));
    qemu
}

/// Whether a machine was silent under KVM: the next one would be too.
static SILENT: AtomicBool = AtomicBool::new(false);

/// Whether the processor has what KVM needs to run any kernel. Without it there can be a KVM all the same (kvm-pvm), that runs
/// only kernels made for it, and others step by step until it meets an instruction that it does not know.
fn virtualizes(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or_default();
    flags.split_whitespace().any(|flag| matches!(flag, "vmx" | "svm"))
}

/// Whether KVM works, not only whether its device is there: some hosts have one that refuses, or that never returns.
fn kvm_usable() -> bool {
    if SILENT.load(Ordering::Relaxed) || !virtualizes(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()) {
        return false;
    }
    let accelerated = ["-accel", "kvm", "-cpu", "host", "-display", "none", "-nodefaults", "-S", "-monitor", "stdio"];
    let mut trial = command("qemu-system-x86_64");
    trial.args(accelerated).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(mut child) = trial.spawn() else { return false };
    if let Some(mut stdin) = child.stdin.take() {
        // A machine that could not be made is gone already; what it says is in its exit code.
        let _ = stdin.write_all(b"quit\n");
    }
    child.wait().is_ok_and(|status| status.success())
}

/// How a machine ended.
enum Ended {
    /// By itself.
    Off,
    /// By us, because it never said a word.
    Silent,
}

/// Shows the console while the machine runs, and ends the machine at the deadline, or when it is still silent after
/// `first_word`.
fn follow(mut child: Child, console: &Path, timeout: Duration, first_word: Option<Duration>) -> Result<Ended> {
    let started = Instant::now();
    let mut shown = Console { path: console.to_path_buf(), at: 0 };
    loop {
        let status = child.try_wait().context("cannot wait for QEMU")?;
        shown.rest();
        if let Some(status) = status {
            if !status.success() {
                bail!("QEMU failed: {status}");
            }
            return Ok(Ended::Off);
        }
        let silent = shown.at == 0 && first_word.is_some_and(|patience| started.elapsed() > patience);
        if silent || started.elapsed() > timeout {
            child.kill().context("cannot end QEMU")?;
            child.wait().context("cannot wait for QEMU")?;
            if silent {
                return Ok(Ended::Silent);
            }
            bail!("the machine did not end within {} s; its console is `{}`", timeout.as_secs(), console.display());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// What has been shown of the console so far.
struct Console {
    path: PathBuf,
    at: u64,
}

impl Console {
    fn rest(&mut self) {
        let mut bytes = Vec::new();
        let read = fs::File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.at))?;
            file.read_to_end(&mut bytes)
        });
        // Showing is a convenience; what counts is read when the machine has ended.
        if let Ok(read) = read {
            self.at += u64::try_from(read).unwrap_or_default();
            print!("{}", String::from_utf8_lossy(&bytes).replace('\r', ""));
            let _ = std::io::stdout().flush();
        }
    }
}

/// The exit code, if console and output disk agree on one and the kernel was well.
fn judge(console: &str, code: Option<&str>) -> Result<i32> {
    if let Some(line) = console.lines().find(|line| TROUBLE.iter().any(|word| line.contains(word))) {
        bail!("the kernel was in trouble: {}", line.trim());
    }
    let verdicts: Vec<&str> =
        console.lines().filter_map(|line| line.split_once(VERDICT).map(|(_, code)| code.trim())).collect();
    match (verdicts.as_slice(), code.map(str::trim)) {
        ([], _) => bail!("the machine gave no verdict"),
        ([_], None) => bail!("the machine gave a verdict and no result"),
        ([one], Some(code)) if *one == code => code.parse().with_context(|| format!("`{code}` is no exit code")),
        ([one], Some(code)) => bail!("the machine said `{one}` on its console and `{code}` in its result"),
        _ => bail!("the machine gave {} verdicts", verdicts.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_is_believed_only_where_the_processor_virtualizes() {
        assert!(virtualizes("processor\t: 0\nflags\t\t: fpu vmx sse\n"));
        assert!(virtualizes("flags\t\t: fpu svm\n"));
        assert!(!virtualizes("flags\t\t: fpu hypervisor\nvmx flags\t: vnmi\n"));
        assert!(!virtualizes(""));
    }

    #[test]
    fn one_verdict_that_agrees_with_the_result_counts() {
        assert_eq!(judge("booting\nwrit-vm: verdict 0\r\n", Some("0\n")).unwrap(), 0);
        assert_eq!(judge("writ-vm: verdict 101\n", Some("101")).unwrap(), 101);
    }

    #[test]
    fn no_verdict_two_verdicts_and_disagreement_are_failures() {
        assert!(judge("booting\n", Some("0")).is_err());
        assert!(judge("writ-vm: verdict 0\n", None).is_err());
        assert!(judge("writ-vm: verdict 0\n", Some("1")).is_err());
        assert!(judge("writ-vm: verdict 0\nwrit-vm: verdict 0\n", Some("0")).is_err());
    }

    #[test]
    fn a_kernel_in_trouble_is_a_failure_even_with_a_good_verdict() {
        for trouble in ["Kernel panic - not syncing", "watchdog: BUG: soft lockup - CPU#0 stuck", "Oops: 0000 [#1]"] {
            assert!(judge(&format!("[1.0] {trouble}\nwrit-vm: verdict 0\n"), Some("0")).is_err(), "{trouble}");
        }
    }
}
