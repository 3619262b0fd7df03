package main

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/internal/fault"
)

// A call that is cut where its time ends says nothing of why: what the agent said before does.
func TestTheEndOfTheTimeHidesNoReason(t *testing.T) {
	why := fault.Status(fault.New(fault.Unavailable, nil, "it starts").With(fault.AgentStarting, "try again"))
	for _, cut := range []codes.Code{codes.Canceled, codes.DeadlineExceeded} {
		asked := 0
		_, err := askWorkloadAPI(t.Context(), "unix:///x", 400*time.Millisecond, func(context.Context) (int, error) {
			if asked++; asked == 1 {
				return 0, why
			}
			return 0, status.Error(cut, "stream terminated by RST_STREAM with error code: CANCEL")
		})
		var f *fault.Error
		if !errors.As(err, &f) || f.What != "it starts" {
			t.Errorf("%s at the end: %v", cut, err)
		}
	}
}

// An agent that is not there yet, or starts, is waited for. One that says that no token can be had has waited already.
func TestNoJWTIsSaidAtOnce(t *testing.T) {
	answers := []error{status.Error(codes.Unavailable, "connection refused"),
		fault.Status(fault.New(fault.Unavailable, nil, "it starts").With(fault.AgentStarting, "")),
		fault.Status(fault.New(fault.Unavailable, nil, "no server answers").With(fault.NoJWT, "try again"))}
	asked := 0
	_, err := askWorkloadAPI(t.Context(), "unix:///x", 20*time.Second, func(context.Context) (int, error) {
		asked++
		return 0, answers[min(asked, len(answers))-1]
	})
	var f *fault.Error
	if !errors.As(err, &f) || f.Code != fault.NoJWT || asked != 3 {
		t.Errorf("after %d calls: %v", asked, err)
	}
}
