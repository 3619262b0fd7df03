package fault_test

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/internal/fault"
)

var kinds = []struct {
	kind  fault.Kind
	name  string
	code  codes.Code
	heard fault.Kind // at the other end
}{
	{fault.Internal, "internal", codes.Internal, fault.Internal},
	{fault.Invalid, "invalid", codes.InvalidArgument, fault.Invalid},
	{fault.Unauthenticated, "unauthenticated", codes.Unauthenticated, fault.Unauthenticated},
	{fault.Denied, "denied", codes.PermissionDenied, fault.Denied},
	{fault.NotFound, "not found", codes.NotFound, fault.NotFound},
	{fault.Conflict, "conflict", codes.AlreadyExists, fault.Conflict},
	{fault.Stale, "stale", codes.FailedPrecondition, fault.Stale},
	{fault.Throttled, "throttled", codes.ResourceExhausted, fault.Throttled},
	{fault.Unavailable, "unavailable", codes.Unavailable, fault.Unavailable},
	{fault.Unreachable, "unreachable", codes.Unavailable, fault.Unavailable}, // whoever answers is not unreachable
}

// What one end says in its words the other end hears in the same.
func TestKindsCrossTheWire(t *testing.T) {
	for range 20 { // kinds share a code: which is heard must not depend on the order of a map
		for _, row := range kinds {
			err := fault.New(row.kind, errors.New("secret cause"), "it did not work").With(fault.StoreFull, "free space").Because("one", "two")
			if got := row.kind.String(); got != row.name || fault.KindNamed(got) != row.kind {
				t.Errorf("%q, want %q, and back", got, row.name)
			}
			sent := fault.Status(fmt.Errorf("doing: %w", err))
			if got := status.Code(sent); got != row.code {
				t.Errorf("%s is sent as %s, want %s", row.name, got, row.code)
			}
			if strings.Contains(sent.Error(), "secret") || strings.Contains(sent.Error(), "doing") {
				t.Errorf("%s shows its cause: %v", row.name, sent)
			}
			var got *fault.Error
			if !errors.As(fault.FromStatus(sent), &got) {
				t.Fatalf("%s is heard as %v", row.name, fault.FromStatus(sent))
			}
			what := "it did not work"
			if row.kind == fault.Internal {
				what = "internal error"
			}
			if got.Kind != row.heard || got.What != what || got.Code != fault.StoreFull || got.Fix != "free space" || !cmp.Equal(got.Why, []string{"one", "two"}) {
				t.Errorf("%s is heard as %+v", row.name, got)
			}
		}
	}
	if got := fault.Kind(200).String(); got != "internal" || fault.KindNamed("none of them") != fault.Internal {
		t.Errorf("a kind that is none is %q", got)
	}
}

// says is an error with a status.
type says struct{ code codes.Code }

// Error is its text.
func (says) Error() string { return "secret" }

// GRPCStatus is its status.
func (s says) GRPCStatus() *status.Status { return status.New(s.code, "") }

func TestStatusShowsNothingOfItsOwn(t *testing.T) {
	for name, row := range map[string]struct {
		err  error
		code codes.Code
		says string
	}{
		"a plain error":                   {errors.New("secret"), codes.Internal, "internal error"},
		"a kind without a page":           {fault.New(fault.NotFound, errors.New("secret"), "no such entry"), codes.NotFound, "no such entry"},
		"the outermost of two kinds":      {fault.New(fault.Denied, fault.New(fault.NotFound, nil, "secret"), "denied"), codes.PermissionDenied, "denied"},
		"a cancelled call":                {fmt.Errorf("secret: %w", context.Canceled), codes.Canceled, "cancelled"},
		"a passed deadline":               {fmt.Errorf("secret: %w", context.DeadlineExceeded), codes.DeadlineExceeded, "deadline exceeded"},
		"another's status":                {status.Error(codes.Unimplemented, "unknown method"), codes.Unimplemented, "unknown method"},
		"another's status, deep within":   {fmt.Errorf("secret: %w", status.Error(codes.Unimplemented, "unknown method")), codes.Unimplemented, "unknown method"},
		"another's status among others":   {errors.Join(errors.New("secret"), status.Error(codes.Aborted, "try again")), codes.Aborted, "try again"},
		"an error that says OK":           {says{codes.OK}, codes.Internal, "internal error"},
		"a kind around another's status":  {fault.New(fault.Unavailable, status.Error(codes.Internal, "secret"), "try again"), codes.Unavailable, "try again"},
		"an unreachable server's status":  {fault.New(fault.Unreachable, nil, "nobody answers"), codes.Unavailable, "nobody answers"},
		"a kind around a cancelled call ": {fault.New(fault.Unavailable, context.Canceled, "too late"), codes.Unavailable, "too late"},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := status.FromError(fault.Status(row.err))
			if s.Code() != row.code || s.Message() != row.says {
				t.Errorf("%s %q, want %s %q", s.Code(), s.Message(), row.code, row.says)
			}
		})
	}
	if fault.Status(nil) != nil || fault.FromStatus(nil) != nil {
		t.Error("nil is an error")
	}
}

func TestFromStatus(t *testing.T) {
	plain := errors.New("plain")
	if got := fault.FromStatus(plain); got != plain {
		t.Errorf("what is no status becomes %v", got)
	}
	for code, want := range map[codes.Code]fault.Kind{codes.DeadlineExceeded: fault.Unreachable, codes.Unavailable: fault.Unavailable,
		codes.Unimplemented: fault.Internal, codes.Unknown: fault.Internal, codes.DataLoss: fault.Internal} {
		if got := fault.KindOf(fault.FromStatus(status.Error(code, "x"))); got != want {
			t.Errorf("%s is heard as %s, want %s", code, got, want)
		}
	}
}

func TestErrorIsOneLine(t *testing.T) {
	cause := errors.New("disk full")
	err := fault.New(fault.Unavailable, cause, "no space is left").Because("/var", "/tmp")
	if got := err.Error(); got != "no space is left (/var; /tmp): disk full" {
		t.Errorf("%q", got)
	}
	if !errors.Is(err, cause) || !fault.Is(fmt.Errorf("write: %w", err), fault.Unavailable) || fault.Is(nil, fault.Internal) || fault.Is(cause, fault.Unavailable) {
		t.Error("kind or cause is lost, or found where there is none")
	}
}

// codesOf reads the constants of codes.go: name by code.
func codesOf(t *testing.T) map[string]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "codes.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		code, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Errorf("%s: %v", spec.Names[0], err)
		}
		if other := seen[code]; other != "" {
			t.Errorf("%s and %s are both %s", other, spec.Names[0], code)
		}
		seen[code] = spec.Names[0].Name
		return true
	})
	if len(seen) < 20 {
		t.Errorf("only %d codes are found", len(seen))
	}
	return seen
}

// A code is never given to another failure.
func TestCodesAreUnique(t *testing.T) {
	form := regexp.MustCompile(`^P[1-8][0-9]{3}$`)
	for code, name := range codesOf(t) {
		if !form.MatchString(code) {
			t.Errorf("%s is %q", name, code)
		}
	}
}

// Whoever reads a code in an error can look it up.
func TestEveryCodeHasAPage(t *testing.T) {
	codes := codesOf(t)
	for code, name := range codes {
		page, there := fault.PageOf(fault.Code(code))
		switch {
		case !there:
			t.Errorf("%s (%s) has no page: write one in pages.go", code, name)
		case page.What == "" || page.Means == "" || len(page.Causes) == 0 || len(page.Do) == 0:
			t.Errorf("the page of %s (%s) says too little: %+v", code, name, page)
		}
	}
	seen := map[fault.Code]bool{}
	for _, page := range fault.Pages() {
		if codes[string(page.Code)] == "" || seen[page.Code] {
			t.Errorf("%s has a page and is no code, or has two", page.Code)
		}
		seen[page.Code] = true
	}
	if _, there := fault.PageOf("P9999"); there {
		t.Error("a code that is none has a page")
	}
}
