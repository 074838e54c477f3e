//! One account's row: the authorizer's answer for every class of connects, asked once per class the policies can tell apart.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use cedar_policy::PolicySet;
use writ_abi::{Family, Protocol, Reason, Verdict};

use super::account::{AccountPolicy, Reads};
use super::bundle::Bundle;
use super::calendar::MomentClass;
use super::classes::{AtomId, Classes};
use super::judge::{Evaluation, Judge, Truth};
use super::moment::Moment;
use super::question::{Question, Subject};
use super::shape::Shape;
use super::state::{AccountState, Approval};
use crate::table::Explanation;

/// The protocols of a row, in cell order.
pub(super) const PROTOCOLS: [Protocol; writ_abi::PROTOCOLS as usize] = [Protocol::Tcp, Protocol::Udp];

/// What one kind of class is to one account: global classes that its policies cannot tell apart become one.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Projection {
    /// By global class.
    pub of: Vec<u16>,
    /// How many there are.
    pub count: u32,
}

/// One cell; `explanation` is an index into the row's own list.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RowCell {
    /// The enforced verdict.
    pub verdict: Verdict,
    /// The verdict with observe-mode policies counted in.
    pub would: Verdict,
    /// `policy` or `policy-error`.
    pub reason: Reason,
    /// Index into [`Row::explanations`].
    pub explanation: u32,
}

/// An account's answers in one state, over one set of classes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Row {
    /// Executable classes.
    pub executables: Projection,
    /// Address classes.
    pub addresses: Projection,
    /// Port classes.
    pub ports: Projection,
    /// `((executable · addresses + address) · ports + port) · PROTOCOLS + protocol) · 2 + new`
    pub cells: Vec<RowCell>,
    /// By socket family.
    pub families: Vec<RowCell>,
    /// What cells name; the first is "nothing permits".
    pub explanations: Vec<Explanation>,
    /// How often the authorizer was asked.
    pub evaluations: usize,
}

/// The part of a state that an account's policies can see: states with the same key have the same row.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct StateKey {
    risk: u8,
    signals: Option<BTreeSet<String>>,
    fresh: Option<BTreeSet<String>>,
    approvals: BTreeSet<Approval>,
    moment: MomentClass,
}

impl StateKey {
    pub(crate) fn new(account: &AccountPolicy, state: &AccountState, moment: &Moment) -> Self {
        let inputs = &account.shared.inputs;
        Self {
            risk: inputs.risk_class(state.risk),
            signals: inputs.signals.then(|| state.signals.clone()),
            fresh: inputs.fresh.then(|| state.fresh.clone()),
            approvals: if inputs.approvals { state.approvals.iter().cloned().collect() } else { BTreeSet::new() },
            moment: account.shared.calendar.class(moment),
        }
    }
}

/// How many cells an account's row has.
pub(crate) fn cells(bundle: &Bundle, classes: &Classes, account: &AccountPolicy) -> usize {
    Shape::new(bundle, classes, account).cells()
}

/// The row. A row beyond the limit of cells (compiling refuses the configuration, but an approval adds classes) denies.
pub(crate) fn row(
    bundle: &Bundle,
    classes: &Classes,
    account: &AccountPolicy,
    state: &AccountState,
    moment: Moment,
) -> Row {
    let shape = Shape::new(bundle, classes, account);
    if shape.cells() > super::MOST_CELLS {
        return Row::denied(classes, Some(format!("the row of `{}` is too large", account.account.name)));
    }
    let each = account.each();
    let (row, known, visible, truths, alike) = Default::default();
    let mut asking = Asking { bundle, account, state, moment, row, known, each, visible, truths, alike };
    asking.explanation(&Evaluation::plain(Verdict::Deny));
    asking.connects(&shape);
    asking.families();
    Row {
        executables: shape.executables,
        addresses: shape.addresses.projection,
        ports: shape.ports.projection,
        ..asking.row
    }
}

/// What the policies can tell apart: cells that agree on it have the same answer.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Distinction {
    executable: usize,
    address: u32,
    port: u32,
    groups: u32,
    udp: bool,
    new_destination: bool,
    approvals: u32,
}

/// Which destinations an endpoint is in, by the ones it is in directly (indices into the shape's).
#[derive(Default)]
struct Memberships {
    known: HashMap<Vec<usize>, (u32, Arc<BTreeSet<String>>)>,
    visible: HashMap<Vec<String>, u32>,
}

impl Memberships {
    /// A number that is the same where the account's policies see the same destinations, and all the destinations.
    fn of(&mut self, direct: Vec<usize>, shape: &Shape<'_>, asked: &BTreeSet<String>) -> (u32, Arc<BTreeSet<String>>) {
        if let Some((key, groups)) = self.known.get(&direct) {
            return (*key, Arc::clone(groups));
        }
        let found = direct.iter().filter_map(|index| shape.destinations.get(*index));
        let groups: Arc<BTreeSet<String>> =
            Arc::new(found.flat_map(|destination| destination.groups.iter().cloned()).collect());
        let key = key(&mut self.visible, groups.intersection(asked).cloned().collect());
        self.known.insert(direct, (key, Arc::clone(&groups)));
        (key, groups)
    }
}

struct Asking<'a> {
    bundle: &'a Bundle,
    account: &'a AccountPolicy,
    state: &'a AccountState,
    moment: Moment,
    row: Row,
    known: HashMap<Explanation, u32>,
    /// Each policy by itself; `None`: they cannot be told apart.
    each: Option<Vec<(&'a Reads, PolicySet)>>,
    /// Sets of destinations that one policy sees.
    visible: HashMap<Vec<String>, u32>,
    /// What each policy says to what it can tell apart.
    truths: HashMap<(usize, Distinction), Truth>,
    /// Answers by what every policy says: nothing else goes into them.
    alike: HashMap<Vec<Truth>, RowCell>,
}

impl<'a> Asking<'a> {
    fn connects(&mut self, shape: &Shape<'_>) {
        let inputs = &self.account.shared.inputs;
        let mut answers: HashMap<Distinction, RowCell> = HashMap::new();
        let mut seen_addresses = HashMap::new();
        let mut seen_ports = HashMap::new();
        let mut memberships = Memberships::default();
        let mut seen_approvals: HashMap<BTreeSet<&str>, u32> = HashMap::new();
        self.row.cells.reserve_exact(shape.cells());
        for (executable, executable_class) in shape.executable_classes.iter().enumerate() {
            for address in &shape.addresses.classes {
                let address_key = key(&mut seen_addresses, seen(&address.atoms, &shape.condition_addresses));
                let near: Vec<usize> = (0..shape.destinations.len())
                    .filter(|index| {
                        let destination = shape.destinations.get(*index);
                        destination.is_some_and(|found| address.atoms.binary_search(&found.address).is_ok())
                    })
                    .collect();
                for port in &shape.ports.classes {
                    let port_key = key(&mut seen_ports, seen(&port.atoms, &shape.condition_ports));
                    for protocol in PROTOCOLS {
                        let direct = near.iter().copied().filter(|index| {
                            shape.destinations.get(*index).is_some_and(|destination| {
                                destination.port.is_none_or(|atom| port.atoms.binary_search(&atom).is_ok())
                                    && (destination.protocols.is_empty() || destination.protocols.contains(&protocol))
                            })
                        });
                        let (groups_key, groups) = memberships.of(direct.collect(), shape, &inputs.destinations);
                        let (ip, port) = (address.representative, port.representative);
                        let approvals = self.state.approved(ip, port, protocol, executable_class.path.as_deref());
                        let approvals_key =
                            if inputs.approvals { key(&mut seen_approvals, approvals.clone()) } else { 0 };
                        for new_destination in [false, true] {
                            let class = Distinction {
                                executable,
                                address: address_key,
                                port: port_key,
                                groups: groups_key,
                                udp: inputs.protocol && protocol == Protocol::Udp,
                                new_destination: inputs.new_destination && new_destination,
                                approvals: approvals_key,
                            };
                            let cell = match answers.get(&class) {
                                Some(cell) => *cell,
                                None => {
                                    let subject =
                                        Subject::Connect { ip, port, protocol, new_destination, groups: &groups };
                                    let name = executable_class.name_for(inputs);
                                    let cell = self.ask_connect(subject, &class, &groups, name, approvals.clone());
                                    answers.insert(class, cell);
                                    cell
                                }
                            };
                            self.row.cells.push(cell);
                        }
                    }
                }
            }
        }
    }

    fn families(&mut self) {
        for family in Family::ALL {
            let cell = self.ask(Subject::OpenSocket(family), super::UNLISTED, BTreeSet::new());
            self.row.families.push(cell);
        }
    }

    /// Asks about a connect, unless every policy says to it what it said to another one: most classes differ in something
    /// that only one policy looks at, and there are as many as there are combinations.
    fn ask_connect(
        &mut self,
        subject: Subject<'_>,
        class: &Distinction,
        groups: &BTreeSet<String>,
        executable: &str,
        approvals: BTreeSet<&str>,
    ) -> RowCell {
        let Some(each) = self.each.take() else { return self.ask(subject, executable, approvals) };
        let question = self.question(subject, executable, approvals);
        let mut asked = None;
        let mut said = Vec::with_capacity(each.len());
        for (index, (reads, alone)) in each.iter().enumerate() {
            let seen = (index, self.seen_by(reads, class, groups));
            let truth = match self.truths.get(&seen) {
                Some(truth) => *truth,
                None => {
                    let asked = asked.get_or_insert_with(|| self.account.asked(&self.bundle.names, &question));
                    let Ok((request, entities)) = asked else { break };
                    let truth = Judge::truth(&self.bundle.authorizer, request, alone, entities);
                    self.row.evaluations += 1;
                    self.truths.insert(seen, truth);
                    truth
                }
            };
            said.push(truth);
        }
        let whole = said.len() == each.len();
        self.each = Some(each);
        if let Some(cell) = self.alike.get(&said).filter(|_| whole) {
            return *cell;
        }
        let asked = asked.unwrap_or_else(|| self.account.asked(&self.bundle.names, &question));
        let evaluation = match &asked {
            Ok(asked) => self.account.judge(&self.bundle.authorizer, &question, asked),
            Err(error) => Evaluation::failed(error.clone()),
        };
        self.row.evaluations += 1;
        let cell = self.cell(&evaluation);
        if whole {
            self.alike.insert(said, cell);
        }
        cell
    }

    /// What one policy can tell of a class.
    fn seen_by(&mut self, reads: &Reads, class: &Distinction, groups: &BTreeSet<String>) -> Distinction {
        let groups = reads.destinations.iter().filter(|name| groups.contains(*name)).cloned().collect();
        Distinction {
            executable: if reads.executables { class.executable } else { 0 },
            address: if reads.addresses { class.address } else { 0 },
            port: if reads.ports { class.port } else { 0 },
            groups: key(&mut self.visible, groups),
            udp: reads.protocol && class.udp,
            new_destination: reads.new_destination && class.new_destination,
            approvals: if reads.approvals { class.approvals } else { 0 },
        }
    }

    fn question<'q>(&self, subject: Subject<'q>, executable: &'q str, approvals: BTreeSet<&'q str>) -> Question<'q>
    where
        'a: 'q,
    {
        Question {
            account: &self.account.account,
            subject,
            executable,
            risk: self.state.risk,
            signals: &self.state.signals,
            fresh: &self.state.fresh,
            approvals,
            moment: self.moment,
        }
    }

    fn ask(&mut self, subject: Subject<'_>, executable: &str, approvals: BTreeSet<&str>) -> RowCell {
        let question = self.question(subject, executable, approvals);
        self.row.evaluations += 1;
        let evaluation = self.account.evaluate(&self.bundle.authorizer, &self.bundle.names, &question);
        self.cell(&evaluation)
    }

    fn cell(&mut self, evaluation: &Evaluation) -> RowCell {
        let explanation = self.explanation(evaluation);
        RowCell { verdict: evaluation.verdict, would: evaluation.would, reason: evaluation.reason, explanation }
    }

    fn explanation(&mut self, evaluation: &Evaluation) -> u32 {
        let explanation = evaluation.explanation();
        let explanations = &mut self.row.explanations;
        *self.known.entry(explanation).or_insert_with_key(|explanation| {
            explanations.push(explanation.clone());
            (explanations.len() - 1) as u32
        })
    }
}

fn seen(atoms: &[AtomId], relevant: &BTreeSet<AtomId>) -> Vec<AtomId> {
    atoms.iter().copied().filter(|atom| relevant.contains(atom)).collect()
}

/// A small number for a value, the same for equal values.
fn key<T: std::hash::Hash + Eq>(known: &mut HashMap<T, u32>, value: T) -> u32 {
    let next = known.len() as u32;
    *known.entry(value).or_insert(next)
}

impl Evaluation {
    /// The evaluation as a cell explains it.
    pub fn explanation(&self) -> Explanation {
        let differs = self.would != self.verdict || self.would_policies != self.policies;
        Explanation {
            policies: self.policies.clone(),
            would: differs.then(|| self.would_policies.clone()),
            errors: self.errors.clone(),
        }
    }
}

impl Row {
    /// A row that refuses everything; AF_UNIX and AF_NETLINK sockets, which are not judged, excepted.
    pub fn denied(classes: &Classes, error: Option<String>) -> Self {
        let reason = if error.is_some() { Reason::PolicyError } else { Reason::Policy };
        let explanation = u32::from(error.is_some());
        let deny = RowCell { verdict: Verdict::Deny, would: Verdict::Deny, reason, explanation };
        let free = RowCell { verdict: Verdict::Allow, would: Verdict::Allow, reason: Reason::Policy, explanation: 0 };
        let flat = |count: usize| Projection { of: vec![0; count], count: 1 };
        let mut explanations = vec![Explanation::default()];
        explanations.extend(error.map(|error| Explanation { errors: vec![error], ..Explanation::default() }));
        Self {
            executables: flat(classes.executables.len()),
            addresses: flat(classes.address_classes.len()),
            ports: flat(classes.port_classes.len()),
            cells: vec![deny; PROTOCOLS.len() * 2],
            families: Family::ALL
                .into_iter()
                .map(|family| if matches!(family, Family::Unix | Family::Netlink) { free } else { deny })
                .collect(),
            explanations,
            evaluations: 0,
        }
    }

    /// The same answers with fewer cells: classes that this state treats alike become one.
    pub(crate) fn compacted(mut self) -> Self {
        let block = PROTOCOLS.len() * 2;
        let sizes =
            |row: &Self| [row.executables.count, row.addresses.count, row.ports.count].map(|count| count as usize);
        let [executables, _, ports] = sizes(&self);
        self.merge(|row| &mut row.addresses, executables, ports * block);
        let [executables, addresses, _] = sizes(&self);
        self.merge(|row| &mut row.ports, executables * addresses, block);
        let [_, addresses, ports] = sizes(&self);
        self.merge(|row| &mut row.executables, 1, addresses * ports * block);
        self
    }

    /// Merges equal slices along one axis, whose index is followed by `inner` cells and preceded by `outer` repetitions.
    fn merge(&mut self, axis: impl Fn(&mut Self) -> &mut Projection, outer: usize, inner: usize) {
        let count = axis(self).count as usize;
        let piece = |outer: usize, index: usize| {
            let start = (outer * count + index) * inner;
            self.cells.get(start..start + inner).unwrap_or(&[])
        };
        let mut known: HashMap<Vec<RowCell>, u16> = HashMap::new();
        let mut kept = Vec::new();
        let mut becomes: Vec<u16> = Vec::new();
        for index in 0..count {
            let slice: Vec<RowCell> = (0..outer).flat_map(|outer| piece(outer, index)).copied().collect();
            let next = kept.len() as u16;
            let merged = *known.entry(slice).or_insert(next);
            if merged == next {
                kept.push(index);
            }
            becomes.push(merged);
        }
        if kept.len() == count {
            return;
        }
        let cells =
            (0..outer).flat_map(|outer| kept.iter().flat_map(move |index| piece(outer, *index))).copied().collect();
        self.cells = cells;
        let axis = axis(self);
        axis.count = kept.len() as u32;
        for class in &mut axis.of {
            *class = becomes.get(usize::from(*class)).copied().unwrap_or(0);
        }
    }

    /// This row made as strict as another one of the same shape, cell by cell; `None` if the shapes differ.
    pub(crate) fn tightened(mut self, other: &Self) -> Option<Self> {
        let same_shape = self.executables == other.executables
            && self.addresses == other.addresses
            && self.ports == other.ports
            && self.cells.len() == other.cells.len()
            && self.families.len() == other.families.len();
        if !same_shape {
            return None;
        }
        let mut taken: HashMap<u32, u32> = HashMap::new();
        let explanations = &mut self.explanations;
        let mut tighten = |cell: &mut RowCell, against: &RowCell| {
            let would = cell.would.max(against.would);
            if against.verdict > cell.verdict {
                *cell = *against;
                cell.explanation = *taken.entry(against.explanation).or_insert_with(|| {
                    explanations.extend(other.explanations.get(against.explanation as usize).cloned());
                    (explanations.len() - 1) as u32
                });
            }
            cell.would = would;
        };
        self.cells.iter_mut().zip(&other.cells).for_each(|(cell, against)| tighten(cell, against));
        self.families.iter_mut().zip(&other.families).for_each(|(cell, against)| tighten(cell, against));
        Some(self)
    }
}
