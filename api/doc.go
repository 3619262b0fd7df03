// Package api leads to the .proto files of writ's own interfaces and the code that buf makes of them: nodev1 is what an agent
// asks of its server, adminv1 what an operator asks, registrationv1 the entry that both carry. `make generate` makes them anew.
package api
