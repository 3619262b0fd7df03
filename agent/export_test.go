package agent

// Shelves is how many users' shelves of JWT-SVIDs there are, over all entries.
func Shelves(a *Agent) (n int) {
	a.cache.mu.RLock()
	defer a.cache.mu.RUnlock()
	for _, r := range a.cache.records {
		n += len(r.jwts)
	}
	return n
}
