//! A file that nobody can read until a test lets go of it: what packs it, or dumps it, stands still there.
//! The system holds readers back by a write lease (fcntl(2), F_SETLEASE), which a process of its own has.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use super::process;
use super::store::text;

/// Takes the lease, tells when somebody wants to read, and ends with its standard input or after a minute.
/// The system itself ends a lease 45 seconds after the first reader has come
/// (`/proc/sys/fs/lease-break-time`).
const HOLDER: &str = r#"
    $| = 1;
    alarm 60;
    $SIG{IO} = sub { print "wanted\n" };
    open(my $file, '<', $ARGV[0]) or die "cannot open it: $!";
    fcntl($file, 1024, 1) or die "cannot have the lease: $!";
    print "held\n";
    1 while sysread(STDIN, my $byte, 1) // 1;
"#;

/// The file, held as long as this lives.
pub struct HeldFile {
    holder: Child,
    said: BufReader<ChildStdout>,
}

impl HeldFile {
    /// Holds a file that nobody has open.
    #[track_caller]
    pub fn hold(file: &Path) -> HeldFile {
        let mut command = Command::new("perl");
        command.args(["-e", HOLDER, text(file)]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = process::spawn(&mut command);
        let said = BufReader::new(holder.stdout.take().expect("the output was asked for"));
        let mut held = HeldFile { holder, said };
        held.wait_for("held");
        held
    }

    /// Waits until somebody wants to read it.
    #[track_caller]
    pub fn wait_until_wanted(&mut self) {
        self.wait_for("wanted");
    }

    #[track_caller]
    fn wait_for(&mut self, word: &str) {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("the holder's output is text");
        assert_eq!(line.trim_end(), word, "the holder of the file has ended");
    }

    /// Lets everybody read it.
    pub fn let_go(self) {}
}

impl Drop for HeldFile {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
