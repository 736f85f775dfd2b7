//! A program on a terminal of its own, as a person has it before them: it sees a terminal, and Ctrl-C reaches everything in the foreground.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::process::Child;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Instant;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::PATIENCE;
use super::program::Program;

/// The end of the terminal at which the person sits.
pub struct Terminal {
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    seen: String,
    /// How far of it was expected already.
    read: usize,
    child: Child,
}

impl Terminal {
    /// Starts a program in a session of its own, whose terminal this is.
    pub fn start(program: &Program) -> Terminal {
        let person = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&person).unwrap();
        unlockpt(&person).unwrap();
        let name = ptsname(&person, Vec::new()).unwrap();
        let line = OpenOptions::new()
            .read(true)
            .write(true)
            .open(name.to_str().unwrap())
            .unwrap();
        let program = program.clone().under(["setsid", "--ctty"]);
        let child = program
            .command()
            .env("TERM", "xterm")
            .stdin(line.try_clone().unwrap())
            .stdout(line.try_clone().unwrap())
            .stderr(line)
            .spawn()
            .unwrap_or_else(|e| panic!("{} does not start: {e}", program.shell()));
        let keyboard = File::from(person);
        let mut shown = keyboard.try_clone().unwrap();
        let (sender, screen) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // An error is the end: nobody has the other side open.
            while let Ok(count @ 1..) = shown.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Terminal {
            keyboard,
            screen,
            seen: String::new(),
            read: 0,
            child,
        }
    }

    /// Returns its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything shown so far.
    pub fn seen(&self) -> &str {
        &self.seen
    }

    /// Waits until this is shown, after what was expected before.
    pub fn expect(&mut self, part: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen[self.read..].find(part) {
                self.read += at + part.len();
                return;
            }
            let left = end.saturating_duration_since(Instant::now());
            match self.screen.recv_timeout(left) {
                Ok(bytes) => self.seen += &String::from_utf8_lossy(&bytes),
                Err(why) => panic!("{why} until the terminal shows \"{part}\":\n{}", self.seen),
            }
        }
    }

    /// Types a line.
    pub fn answer(&mut self, line: &str) {
        self.keyboard
            .write_all(format!("{line}\n").as_bytes())
            .unwrap();
    }

    /// Types Ctrl-C.
    pub fn interrupt(&mut self) {
        // Nobody hears it who has ended by now: the terminal answers EIO.
        let _ = self.keyboard.write_all(&[3]);
    }

    /// Waits for the program's end; returns its exit status, and everything that was shown.
    pub fn end(mut self) -> (Option<i32>, String) {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.screen.recv_timeout(left) {
                Ok(bytes) => self.seen += &String::from_utf8_lossy(&bytes),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it does not end:\n{}", self.seen),
            }
        }
        let status = self.child.wait().unwrap();
        (status.code(), std::mem::take(&mut self.seen))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
