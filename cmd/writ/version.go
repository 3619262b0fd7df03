package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func newVersionCommand() *cobra.Command {
	var p printed
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the version",
		Args:  checked(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			version, revision := build()
			if p.form == "table" {
				fmt.Fprintf(cmd.OutOrStdout(), "writ %s (%s, %s %s/%s)\n", version, revision, runtime.Version(), runtime.GOOS, runtime.GOARCH)
				return nil
			}
			return p.document(cmd.OutOrStdout(), "Version", map[string]any{"version": version, "revision": revision,
				"go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH})
		},
	}
	p.flag(cmd, "table", "json", "yaml")
	return cmd
}

// build gives the module's version and the commit it was built from, as far as the build knows them.
func build() (version, revision string) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown", "unknown"
	}
	version, revision = info.Main.Version, "unknown"
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			revision = s.Value
		}
	}
	return version, revision
}
