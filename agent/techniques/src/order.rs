//! An order to try: what a process is told when it is started for nothing else, and how it goes about it.

use std::io::Read as _;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::catalogue;
use crate::executable::become_image;
use crate::scene::Scene;
use crate::system::{become_user, enter_cgroup, in_child};
use crate::technique::{Start, Technique, perform};
use crate::tried::{Answer, Failure, Tried, prepare};

/// Which image of the program tries.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub enum Image {
    /// The file it was started from.
    #[default]
    Itself,
    /// A copy in memory.
    Memory,
    /// A copy in another file.
    Copy,
}

/// An order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// The id of a technique; `all`: one after the other, where it is repeated.
    pub technique: String,
    /// Where.
    pub scene: Scene,
    /// Whether to stay who one is.
    #[serde(default)]
    pub as_is: bool,
    /// Whether to wait until standard input closes.
    #[serde(default)]
    pub wait: bool,
    /// What to become first.
    #[serde(default)]
    pub image: Image,
    /// For how long to try again and again, in milliseconds; 0: once.
    #[serde(default)]
    pub repeat: u64,
}

impl Order {
    /// To try this once.
    pub fn new(technique: &str, scene: &Scene) -> Self {
        Self {
            technique: technique.to_owned(),
            scene: scene.clone(),
            as_is: false,
            wait: false,
            image: Image::Itself,
            repeat: 0,
        }
    }

    /// As the command line carries it.
    pub fn to_json(&self) -> String {
        // Strings and numbers alone: nothing in it can fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads what a command line carried.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_json(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    /// Tries, and says what came of it.
    pub fn carry_out(&self) -> Answer {
        if self.wait {
            // Whatever ends the reading ends the waiting.
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
        }
        if self.image != Image::Itself {
            let then = Self { image: Image::Itself, ..self.clone() };
            return Answer::new(&Err(become_image(self.image, &then)), vec![std::process::id()]);
        }
        if !self.as_is
            && let Err(failure) = prepare("entering the cgroup", enter_cgroup(&self.scene.inside))
        {
            return Answer::new(&Err(failure), vec![std::process::id()]);
        }
        if self.repeat > 0 {
            return self.again_and_again();
        }
        let tried = match catalogue::find(&self.technique) {
            Some(technique) => self.once(technique),
            None => Err(Failure::Broken(format!("there is no technique `{}`", self.technique))),
        };
        let mut pids = vec![std::process::id()];
        pids.append(&mut self.scene.others.borrow_mut());
        Answer::new(&tried, pids)
    }

    fn once(&self, technique: &Technique) -> Tried {
        if technique.start == Start::User && !self.as_is {
            become_user(self.scene.uid, technique.capabilities)?;
        }
        perform(technique, &self.scene)
    }

    /// Each attempt in a child of its own, because many of them change what the process is.
    fn again_and_again(&self) -> Answer {
        let until = Instant::now() + Duration::from_millis(self.repeat);
        let chosen = |technique: &&Technique| {
            self.technique == technique.id || (self.technique == "all" && technique.may_be_repeated())
        };
        let techniques: Vec<&Technique> = catalogue::CATALOGUE.iter().filter(chosen).collect();
        let mut answer = Answer { pids: vec![std::process::id()], ..Answer::default() };
        if techniques.is_empty() {
            answer.broken = Some(format!("there is no technique `{}`", self.technique));
            return answer;
        }
        while Instant::now() < until {
            for technique in &techniques {
                // What becomes of it is the capture's to see.
                let _ = in_child(&self.scene, || self.once(technique));
                self.scene.others.borrow_mut().clear();
                answer.attempts += 1;
                if Instant::now() >= until {
                    break;
                }
            }
        }
        answer
    }
}
