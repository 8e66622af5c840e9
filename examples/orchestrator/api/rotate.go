package api

import (
	"context"

	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

// RotateRequest asks for the next step of a rotation of the CA, if the nodes are ready for it.
type RotateRequest struct {
	Begin bool `json:"begin,omitempty"` // a rotation, if none is under way
	Force bool `json:"force,omitempty"` // do not wait for nodes that are not ready; they have to join anew
	Abort bool `json:"abort,omitempty"` // give up a rotation whose new CA does not sign yet
}

// RotateAnswer says how far the rotation has come.
type RotateAnswer struct {
	Phase   cluster.RotationPhase `json:"phase"` // after the step
	New     string                `json:"new,omitempty"`
	Waiting []WaitingNode         `json:"waiting,omitempty"` // for what the phase asks of all
}

// WaitingNode is a node that a rotation waits for.
type WaitingNode struct {
	Node   cluster.NodeID     `json:"node"`
	Status cluster.NodeStatus `json:"status"`
}

// CAKeyRequest asks another manager for the key of a CA.
type CAKeyRequest struct {
	Digest string `json:"digest"`
}

// CAKeyAnswer is the CA. It is as secret as can be, and goes from manager to manager only.
type CAKeyAnswer struct {
	Certificate []byte `json:"certificate"`
	Key         []byte `json:"key"`
}

// Rotate asks for the next step of a rotation. It means the same when it comes twice.
func (c *Client) Rotate(ctx context.Context, r RotateRequest) (a RotateAnswer, err error) {
	err = c.repeat(ctx, PathRotate, r, &a)
	return a, err
}

// CAKey asks for the key of a CA.
func (c *Client) CAKey(ctx context.Context, r CAKeyRequest) (a CAKeyAnswer, err error) {
	err = c.repeat(ctx, PathCAKey, r, &a)
	return a, err
}
