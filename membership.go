package raft

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Change is a change of the membership, applied as one joint change (§6). All parts may be combined.
type Change struct {
	Add     []Server          // new members; they begin as NonVoter
	Promote []NodeID          // non-voters that become voters; they must have caught up
	Demote  []NodeID          // voters that become non-voters
	Remove  []NodeID          // members that leave, for ever: the ID cannot come back
	Address map[NodeID]string // members that moved
	// Priority changes who campaigns first.
	Priority map[NodeID]uint8
	IfIndex  Index // only if the present configuration comes from this index; 0: whatever it is
}

// configurationAt is a configuration and the index of the entry that it comes from.
type configurationAt struct {
	index Index
	conf  Configuration
}

// peer is a member of the configuration in force, this server included, or one that was removed and is told so.
type peer struct {
	server Server // as in the configuration
	member bool   // false: it only lingers

	// Which process we heard from last.
	replica     ReplicaID
	incarnation uint64
	first       ReplicaID // the first replica that this server heard from under that ID

	vote voteState // candidates: in this election

	repair peerRepair

	// Leaders only.
	progress
	lastHeard    time.Duration
	ackedRound   uint64        // the newest read round that it answered
	lingerUntil  time.Duration // give up telling it that it was removed
	lingerCommit Index         // it knows once it was told that this is committed
}

// voter reports whether the peer is counted in any majority.
func (p *peer) voter() bool { return p.member && (p.server.votesNew() || p.server.votesOld()) }

// configuration is the one in force: the latest in the log, committed or not (§6).
func (c *Core) configuration() *Configuration {
	if n := len(c.configurations); n > 0 {
		return &c.configurations[n-1].conf
	}
	return &noConfiguration
}

var noConfiguration Configuration // of a server that belongs to no cluster yet; never changed

func (c *Core) configurationIndex() Index {
	if n := len(c.configurations); n > 0 {
		return c.configurations[n-1].index
	}
	return 0
}

// configurationBefore returns the latest configuration at or below index.
func (c *Core) configurationBefore(index Index) (configurationAt, bool) {
	for k := len(c.configurations) - 1; k >= 0; k-- {
		if c.configurations[k].index <= index {
			return c.configurations[k], true
		}
	}
	return configurationAt{}, false
}

// peer finds a peer; nil if there is none.
func (c *Core) peer(id NodeID) *peer {
	for i := range c.peers { // clusters are small; a scan beats a map
		if c.peers[i].server.ID == id {
			return &c.peers[i]
		}
	}
	return nil
}

// counted reports whether votes and acknowledgements of the process that is talking count: it must run on the data directory that
// the configuration names, or, after a static bootstrap, on the one that was heard first.
func (c *Core) counted(p *peer) bool {
	want := p.server.Replica
	if want == 0 {
		want = p.first
	}
	return want == p.replica
}

// quorum reports whether the peers with the property are a majority of the voters, of both halves in a joint configuration (§6).
func (c *Core) quorum(has func(*peer) bool) bool {
	return c.majority((*Server).votesNew, has) && (!c.configuration().Joint() || c.majority((*Server).votesOld, has))
}

func (c *Core) majority(votes func(*Server) bool, has func(*peer) bool) bool {
	n, yes := 0, 0
	for i := range c.peers {
		if p := &c.peers[i]; p.member && votes(&p.server) {
			n++
			if has(p) {
				yes++
			}
		}
	}
	return n > 0 && yes > n/2
}

// quorumValue returns the largest value that a majority of the voters, of both halves in a joint configuration, has reached.
// 0 if there are no voters.
func (c *Core) quorumValue(value func(*peer) uint64) uint64 {
	v := c.majorityValue((*Server).votesNew, value)
	if c.configuration().Joint() {
		v = min(v, c.majorityValue((*Server).votesOld, value))
	}
	return v
}

func (c *Core) majorityValue(votes func(*Server) bool, value func(*peer) uint64) uint64 {
	var array [9]uint64 // no allocation up to nine voters
	vs := array[:0]
	for i := range c.peers {
		if p := &c.peers[i]; p.member && votes(&p.server) {
			vs = append(vs, value(p))
		}
	}
	if len(vs) == 0 {
		return 0
	}
	slices.Sort(vs)
	return vs[(len(vs)-1)/2] // of n sorted values, at least a majority is not below this one
}

// configurationsIn decodes the configurations among entries, before any of them is appended.
func configurationsIn(es []Entry) ([]configurationAt, error) {
	var found []configurationAt
	for i := range es {
		if es[i].Type != EntryConfiguration {
			continue
		}
		conf, err := DecodeConfiguration(es[i].Data)
		if err == nil {
			err = conf.Validate()
		}
		if err != nil {
			return nil, err
		}
		found = append(found, configurationAt{es[i].Index, conf})
	}
	return found, nil
}

// adoptConfiguration puts a configuration in force, as soon as its entry is in the log (§6: "a server always uses the latest
// configuration in its log, regardless of whether the entry is committed").
func (c *Core) adoptConfiguration(at configurationAt) {
	c.configurations = append(c.configurations, at)
	c.configurationInForce()
}

// rollBackConfigurations returns to the configuration before from, because the entries from there on are gone.
func (c *Core) rollBackConfigurations(from Index) {
	n := len(c.configurations)
	for n > 0 && c.configurations[n-1].index >= from {
		n--
	}
	if n == len(c.configurations) {
		return
	}
	c.configurations = c.configurations[:n:n]
	c.configurationInForce()
}

func (c *Core) configurationInForce() {
	c.rebuildPeers()
	c.out.Events = append(c.out.Events, ConfigurationChange{Index: c.configurationIndex(), Configuration: c.configuration().Clone()})
}

// rebuildPeers follows the configuration in force. What is known about servers that stay is kept. A leader goes on talking to a
// server that leaves until that server knows of its removal, or for a bounded time: otherwise it would campaign against us.
func (c *Core) rebuildPeers() {
	conf := c.configuration()
	old := c.peers
	c.peers = make([]peer, 0, len(conf.Servers)+1)
	for _, s := range conf.Servers {
		p := peer{}
		for i := range old {
			if old[i].server.ID == s.ID {
				p = old[i]
			}
		}
		if p.server.ID == "" && c.role == Leader {
			p.progress = progress{nextIndex: c.log.last + 1, resetRequest: c.nextRequest}
			p.lastHeard = c.now
		}
		p.server, p.member = s, true
		if s.ID == c.id {
			p.replica, p.incarnation = c.replica, c.incarnation
		} else if p.replica == 0 {
			p.replica = s.Replica
		}
		c.peers = append(c.peers, p)
	}
	for i := range old {
		p := old[i]
		if _, stays := conf.Server(p.server.ID); stays || c.role != Leader || p.server.ID == c.id {
			continue
		}
		if p.member {
			p.member, p.vote = false, voteNone
			p.lingerUntil, p.lingerCommit = c.now+10*c.cfg.ElectionTimeout, c.configurationIndex()
		}
		c.peers = append(c.peers, p)
	}
	slices.SortFunc(c.peers, func(a, b peer) int { return strings.Compare(string(a.server.ID), string(b.server.ID)) })

	c.priorityRank = 0
	if own, ok := conf.Server(c.id); ok {
		var higher []uint8
		for i := range c.peers {
			if p := &c.peers[i]; p.voter() && p.server.Priority > own.Priority && !slices.Contains(higher, p.server.Priority) {
				higher = append(higher, p.server.Priority)
			}
		}
		c.priorityRank = len(higher)
	}
	c.announcePeers()
}

// announcePeers tells the transport whom to reach.
func (c *Core) announcePeers() {
	c.out.Peers = make([]Server, 0, len(c.peers))
	for i := range c.peers {
		if c.peers[i].server.ID != c.id {
			c.out.Peers = append(c.out.Peers, c.peers[i].server)
		}
	}
}

// dropLingering forgets removed servers that know of their removal, or were given enough time to learn it, or all of them on a
// server that does not lead.
func (c *Core) dropLingering() {
	done := func(p peer) bool {
		return !p.member && (c.role != Leader || c.now >= p.lingerUntil ||
			p.matchIndex >= p.lingerCommit && p.sentCommit >= p.lingerCommit)
	}
	if slices.ContainsFunc(c.peers, done) {
		c.peers = slices.DeleteFunc(c.peers, done)
		c.announcePeers()
	}
}

// configurationCommitted does what hangs on the commitment of the configuration in force.
func (c *Core) configurationCommitted() {
	at := c.configurationIndex()
	if at > c.commitIndex {
		// The one in force is not committed, but an earlier one may have been.
		if before, ok := c.configurationBefore(c.commitIndex); ok && before.index > c.committedConfig {
			c.committedConfig = before.index
		}
		return
	}
	if at > c.committedConfig {
		c.committedConfig = at
		c.out.Events = append(c.out.Events, ConfigurationChange{Index: at, Committed: true, Configuration: c.configuration().Clone()})
	}
	if c.role != Leader || c.commitIndex < c.termStart {
		return
	}
	switch conf := c.configuration(); {
	case conf.Joint():
		// Whoever entered the joint configuration: a leader that finds it committed leaves it (§6).
		c.appendConfiguration(conf.left())
	case !conf.IsVoter(c.id):
		// "The leader that is not part of the new configuration steps down once it has committed it" (§6), after telling its
		// followers, so that they need not find out by a timeout.
		for i := range c.peers {
			if p := &c.peers[i]; p.server.ID != c.id {
				c.sendCommit(p)
			}
		}
		c.handOver(ReasonRemoved)
	}
}

// left is the configuration behind a joint one: only the new half is left.
func (c *Configuration) left() Configuration {
	next := c.Clone()
	next.Servers = next.Servers[:0]
	for _, s := range c.Servers {
		if s.Leaving {
			next.bury(s.ID)
			continue
		}
		s.Outgoing = false
		next.Servers = append(next.Servers, s)
	}
	return next
}

// bury remembers a removed server, so that its ID cannot come back.
func (c *Configuration) bury(id NodeID) {
	c.Removed = append(c.Removed, id)
	if n := len(c.Removed) - MaxTombstones; n > 0 {
		c.Removed = c.Removed[n:]
	}
}

func (c *Core) appendConfiguration(conf Configuration) EntryID {
	err := conf.Validate()
	assertf(c, err == nil, "a leader makes an invalid configuration: %v", err)
	c.appendOwn(newEntry(EntryConfiguration, conf.AppendBinary(nil)))
	c.adoptConfiguration(configurationAt{c.log.last, conf})
	return EntryID{Term: c.currentTerm, Index: c.log.last}
}

// ChangeMembership appends a configuration entry, which is in force at once. A change of voters goes through a joint configuration
// in which both the old and the new majority are needed (§6), so any change that keeps a working majority is allowed in one step.
// It is refused until this leader has committed an entry of its own term: before, an earlier change may be in the log unknown
// to it (dissertation §4.1, and the correction of 2015). Errors: *NotLeaderError, ErrChangePending, ErrChangeConflict,
// *MembershipError. The change is done when the configuration of the returned entry, or (if it is joint) of the one that follows,
// is committed.
func (c *Core) ChangeMembership(now time.Duration, ch Change) (EntryID, error) {
	c.advanceClock(now)
	switch {
	case c.role != Leader:
		return EntryID{}, c.notLeader()
	case ch.IfIndex != 0 && ch.IfIndex != c.configurationIndex():
		return EntryID{}, ErrChangeConflict
	case c.commitIndex < c.termStart || c.configurationIndex() > c.commitIndex || c.configuration().Joint() || c.transferee != "":
		return EntryID{}, ErrChangePending
	}
	next, err := c.changed(ch)
	if err != nil {
		return EntryID{}, err
	}
	return c.appendConfiguration(next), nil
}

// changed applies a change to the configuration in force, and says why not.
func (c *Core) changed(ch Change) (Configuration, error) {
	next := c.configuration().Clone()
	refused := func(id NodeID, format string, args ...any) (Configuration, error) {
		return Configuration{}, &MembershipError{Server: id, Reason: fmt.Sprintf(format, args...)}
	}
	var named []NodeID // by the parts that exclude each other
	name := func(id NodeID) (s *Server, problem string) {
		if slices.Contains(named, id) {
			return nil, "is named twice in one change"
		}
		named = append(named, id)
		for i := range next.Servers {
			if next.Servers[i].ID == id {
				return &next.Servers[i], ""
			}
		}
		return nil, "is not a member"
	}

	for _, id := range ch.Promote {
		s, problem := name(id)
		switch {
		case s == nil:
			return refused(id, "%s", problem)
		case s.Suffrage == Voter:
			return refused(id, "is a voter already")
		case !c.caughtUp(id):
			return refused(id, "has not caught up with the log yet, or cannot be reached; wait and try again")
		}
		s.Suffrage = Voter
	}
	for _, id := range ch.Demote {
		s, problem := name(id)
		switch {
		case s == nil:
			return refused(id, "%s", problem)
		case s.Suffrage != Voter:
			return refused(id, "is not a voter")
		}
		s.Suffrage = NonVoter
	}
	for _, id := range ch.Remove {
		s, problem := name(id)
		if s == nil {
			return refused(id, "%s", problem)
		}
		s.Leaving = true
	}
	for i := range next.Servers { // a map is only looked up, never walked
		s := &next.Servers[i]
		if a, ok := ch.Address[s.ID]; ok {
			s.Address = a
		}
		if p, ok := ch.Priority[s.ID]; ok {
			s.Priority = p
		}
	}
	if id, ok := firstUnknown(&next, ch); !ok {
		return refused(id, "is not a member")
	}
	for _, s := range ch.Add {
		if _, problem := name(s.ID); problem != "is not a member" {
			return refused(s.ID, "is a member already, or named twice")
		}
		if next.IsRemoved(s.ID) {
			return refused(s.ID, "was removed for ever; give the server a new ID and an empty directory")
		}
		next.Servers = append(next.Servers, Server{ID: s.ID, Address: s.Address, Priority: s.Priority, Suffrage: NonVoter})
	}
	next.sortServers()

	if err := c.keepsQuorum(&next); err != nil {
		return Configuration{}, err
	}
	if !slices.Equal(next.Voters(), c.configuration().Voters()) {
		for i := range next.Servers {
			s := &next.Servers[i]
			s.Outgoing = c.configuration().IsVoter(s.ID)
		}
	} else {
		next = next.left() // nothing joint about it: drop leaving non-voters right away
	}
	if err := next.Validate(); err != nil {
		return Configuration{}, &MembershipError{Reason: err.Error()}
	}
	if slices.EqualFunc(next.Servers, c.configuration().Servers, func(a, b Server) bool { return a == b }) {
		return refused("", "it changes nothing")
	}
	return next, nil
}

// firstUnknown returns the least ID in Address or Priority that is no member.
func firstUnknown(conf *Configuration, ch Change) (least NodeID, ok bool) {
	ok = true
	see := func(id NodeID) {
		if _, member := conf.Server(id); !member && (ok || id < least) {
			least, ok = id, false
		}
	}
	for id := range ch.Address { // order-free: the least is kept
		see(id)
	}
	for id := range ch.Priority { // order-free: the least is kept
		see(id)
	}
	return least, ok
}

// keepsQuorum refuses a change after which the cluster could not commit anything, or that removes a majority at once.
func (c *Core) keepsQuorum(next *Configuration) error {
	now, lost := c.configuration().Voters(), 0
	for _, id := range now {
		if !slices.Contains(next.Voters(), id) {
			lost++
		}
	}
	if len(next.Voters()) == 0 {
		return &MembershipError{Reason: "it would leave no voter"}
	}
	if lost > len(now)/2 && len(now) > 1 {
		return &MembershipError{Reason: fmt.Sprintf("it would take away %d of %d voters, a majority, at once; go in smaller steps", lost, len(now))}
	}
	alive := 0
	for _, id := range next.Voters() {
		if p := c.peer(id); id == c.id || p != nil && c.now-p.lastHeard < c.cfg.ElectionTimeout {
			alive++
		}
	}
	if alive <= len(next.Voters())/2 {
		return &MembershipError{Reason: fmt.Sprintf("only %d of the %d voters that it leaves answer: the cluster could commit nothing", alive, len(next.Voters()))}
	}
	return nil
}

// caughtUp reports whether a learner follows the log so closely that it can be counted: all that is committed has been sent to it,
// it acknowledges, and what it has not acknowledged fits into the window of its pipeline.
func (c *Core) caughtUp(id NodeID) bool {
	p := c.peer(id)
	return p != nil && c.counted(p) && p.state == stateReplicate && p.nextIndex > c.commitIndex && c.now-p.lastHeard < c.cfg.ElectionTimeout
}

// recordReplicas writes the replicas that were learned since a static bootstrap into the configuration, so that from then on
// nobody else is counted in their place.
func (c *Core) recordReplicas() {
	if c.commitIndex < c.termStart || c.configurationIndex() > c.commitIndex || c.configuration().Joint() || c.transferee != "" {
		return
	}
	next, changed := c.configuration().Clone(), false
	for i := range next.Servers {
		s := &next.Servers[i]
		if p := c.peer(s.ID); s.Replica == 0 && p.replica != 0 && (s.ID == c.id || p.matchIndex > 0) {
			s.Replica, changed = p.replica, true
		}
	}
	if changed {
		c.appendConfiguration(next)
	}
}
