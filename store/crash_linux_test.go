package store_test

const crashVariable = "WRIT_STORE_CRASH"

func writeUntilKilled(string) {}
