package mesh

// Abuse is a way in which a peer asks for much work or memory with little of its own. Each has a counter of its own
// (conduit_proxy_abuse_total), beside the Reason of what it broke.
type Abuse string

// The kinds of abuse.
const (
	AbuseNone         Abuse = ""
	AbuseResets       Abuse = "reset-flood"        // streams reset, or made to be reset (CVE-2023-44487, CVE-2025-8671)
	AbuseContinuation Abuse = "continuation-flood" // a header block in too many pieces, or too large (CVE-2024-27316)
	AbusePing         Abuse = "ping-flood"         // CVE-2019-9512
	AbuseSettings     Abuse = "settings-flood"     // SETTINGS, or GOAWAY, over and over (CVE-2019-9515)
	AbusePriority     Abuse = "priority-flood"     // CVE-2019-9513
	AbuseFrames       Abuse = "frame-flood"        // frames of unknown types
	AbuseEmpty        Abuse = "empty-data-flood"   // DATA that carries nothing (CVE-2019-9518)
	AbuseWindow       Abuse = "window-flood"       // WINDOW_UPDATE by far more than there is DATA (CVE-2019-9511)
	AbuseTinyWindow   Abuse = "tiny-window"        // windows that are opened by a few bytes each time
	AbuseLargeHead    Abuse = "large-head"         // a head over the limits once it is decoded
	AbuseSlowHead     Abuse = "slow-head"          // a head, a frame or a preface that does not come to its end
	AbuseSlowBody     Abuse = "slow-body"          // a body of announced length that hardly comes
	AbuseUnread       Abuse = "unread"             // answers that are asked for and not taken
)
