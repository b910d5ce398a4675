"""Plots between people: promises, lunches, neighbors, secrets, contests, help; each a function that tells one tale."""

from __future__ import annotations

from llamita.data.tales_grammar import Tale, table
from llamita.data.tales_world import FOODS, OTHER_FOODS, WHOLE_FOODS, begin, close_tale, is_animal, open_tale, scenery

# what was promised, the work itself, what it led to
_PROMISES = table("""
water the young tree while {e} was away / gave the young tree two cans of water / the tree was covered with white
    flowers
bring {e} a bowl of soup before dark / carried the hot soup to {e}, step by step / {e} was well again
feed the hens while {e} was away / gave the hens their corn and fresh water / there were seven warm eggs in the straw
light the lamp by the path before night / climbed up and lit the lamp / {e} found the way home through the fog
take the letter to {e} by evening / put the letter into {e}'s hand / {e} read that a little grandchild had been born
pick the ripe plums for {e} / picked every last plum and put them in the basket / {e} made jam, with one jar for {h}
sit with {e} and read {e.him} a story / read three stories aloud, one after the other / {e} was smiling and not lonely
    anymore
watch over the eggs while {e} slept / kept the eggs warm under a blanket / the first egg cracked, and a yellow chick
    looked out
""")
_FUN = (
    "swim in the river", "see the puppet show", "slide down the hill", "eat cake with us", "play hide and seek",
    "sail paper boats", "catch fireflies", "build a house of branches", "listen to the music", "ride on the hay cart",
)  # fmt: skip


def promise_kept(tale: Tale) -> None:
    """A promise stands between the hero and some fun: kept at once, nearly forgotten, or kept with a friend's help."""
    begin(tale, season=tale.pick(("spring", "summer", "autumn")))
    promise, work, reward = tale.pick(_PROMISES if is_animal(tale) else _PROMISES[:-1])
    open_tale(tale, tale.pick(("", "", "cheerful", "helpful")))
    tale.say(f"{{Day}}, {{h.first}} met {{e.first}} and promised to {promise}.")
    tale.one_of(
        '"You can count on me," said {h}.',
        '"Will you remember?" asked {e}. "I promise," said {h}.',
        '"A promise is a promise," said {h}.',
    )
    tale.let(fun=tale.pick(_FUN))
    tale.paragraph()
    tale.one_of(
        'On the way, {h} met {f.first}. "Come and {fun}!" called {f}.',
        'Just then {f.first} came running. "We are going to {fun}. Hurry up!" {f.he} said.',
        'But soon {f.first} stood at the door. "Let us {fun}!" {f} said. "Everyone is there."',
    )
    branch = tale.pick(("firm", "forgets", "together"))
    if branch == "firm":
        tale.one_of(
            '{h} wanted to go, more than anything. But {h.he} thought of {e}. "First I must keep my promise," {h.he}'
            " said.",
            '{h} looked at {f}, and then {h.he} looked the other way. "I would love to," {h.he} said, "but I gave my'
            ' word."',
        )
        tale.say(f"So {{h}} went and {work}.")
    elif branch == "forgets":
        tale.one_of(
            "That sounded so good that {h} forgot everything else. They had a wonderful time. But when the sun went"
            " down,"
            ' {h} stopped. "My promise!" {h.he} cried.',
            "{h} went along, and {h.he} laughed and played for hours. Then {h.he} heard an owl call, and {h.he} felt"
            " cold."
            " {h.He} had promised something!",
        )
        tale.one_of(
            f"{{h}} ran as fast as {{h.he}} could. It was almost too late, but not quite. {{h.He}} {work}.",
            f"{{h.He}} did not stop to say goodbye. {{h.He}} ran and ran, and, with the last light, {{h.he}} {work}.",
        )
    else:
        tale.one_of(
            '"I cannot," said {h}. "I made a promise to {e}." {f} thought about it. "Then I will help you," {f.he}'
            ' said, "and we will be done in half the time."',
            '{h} told {f} about the promise. "I see," said {f}. "Then the fun can wait. I will come with you."',
        )
        tale.say(f"While {{f}} helped and sang, {{h}} {work}.")
    tale.paragraph()
    when = tale.pick(("The next morning", "A few days later", "Before the week was over"))
    tale.say(f"{when}, {reward}.")
    tale.one_of(
        '"You kept your promise," said {e}. "That is worth more than gold."',
        '"Thank you, {h}," said {e}. "I knew that I could trust you."',
        '{e} took {h}\'s hand and held it for a long time. "Thank you," {e.he} said.'
        if not is_animal(tale)
        else '{e} looked at {h} for a long time. "Thank you," {e.he} said.',
    )
    if branch == "firm":
        tale.one_of(
            'And {f} came back. "We waited for you," {f.he} said. "Now we can {fun} together!"',
            "And the next day, {h} and {f} went to {fun} after all.",
        )
    elif branch == "forgets":
        tale.say('{h} blushed a little. "I almost forgot," {h.he} said. "But you came," said {e}.')
    else:
        tale.one_of("And then {h} and {f} ran off to {fun}.", '"And now," said {f}, "let us {fun}!"')
    close_tale(
        tale,
        "{h} felt warm inside, because {h.he} had kept {h.his} word.",
        "From then on, when {h} promised something, everyone knew that it would be done.",
        "A promise is a small thing to say, but a big thing to keep.",
    )


# who is hungry, the trouble that comes later, how the one who was fed helps
_HUNGRY = table("""
an old goat / {h} hurt {h.his} foot far from home / carried {h.him} home on its back
a thin gray cat / mice came to eat {h}'s winter food / chased them all away
a tired sparrow / the river rose in the night while {h} was asleep / woke {h.him} just in time
a tiny ant / {h} dropped a bead in the sand and could not find it / found it, carried it out, and laid it down
a lost dog / {h} lost the way in thick fog / barked, ran ahead, and led {h.him} home
a young crow / {h}'s hat blew onto a high roof / flew up and brought it down
a small donkey / {h}'s cart got stuck in deep mud / pulled it out with one strong pull
a wet little duck / {h}'s paper boat drifted away / swam after it and brought it back
""")


def shared_lunch(tale: Tale) -> None:
    """Food is shared with somebody hungry, or by somebody with the hungry hero; kindness comes back another day."""
    begin(tale, season=tale.pick(("spring", "summer", "autumn")))
    food, food2 = tale.sample(FOODS, 2)
    tale.let(food=food, food2=food2)
    open_tale(tale)
    branch = tale.pick(("creature", "friend", "forgot", "new"))
    if branch == "creature":
        _lunch_for_creature(tale)
    elif branch == "friend":
        _friend_lost_lunch(tale)
    elif branch == "forgot":
        _hero_forgot_lunch(tale)
    else:
        _lunch_with_stranger(tale)
    close_tale(
        tale,
        "Half a lunch and a friend, {h} thought, taste better than a whole lunch alone.",
        "From then on, {h} always packed a little more than {h.he} needed.",
        "Nothing tastes as good as something shared.",
        "And {h} knew that kindness always finds its way back.",
    )


def _pack_lunch(tale: Tale) -> None:
    tale.one_of(
        "{Day}, {h.first} took a {food} and walked to {place} to eat it.",
        "{Day}, {m} gave {h.first} a {food}. {h} carried it to {place}.",
        "{Day}, {h.first} sat down {place.at} with a {food}. {h.He} had been looking forward to it all day.",
    )
    scenery(tale)


def _lunch_for_creature(tale: Tale) -> None:
    creature, trouble, favor = tale.pick(_HUNGRY)
    whole = tale.chance(0.6)
    tale.let(food=tale.pick(WHOLE_FOODS if whole else OTHER_FOODS))
    tale.let(creature=creature, that="the " + creature.split(" ", 1)[1])
    _pack_lunch(tale)
    tale.one_of(
        'There {h.he} saw {creature}. "I have not eaten since yesterday," said {that}.',
        "Just as {h.he} opened {h.his} mouth, {creature} came closer and looked at the food.",
        "But {h} was not alone. {Creature} was watching with big, hungry eyes.",
    )
    tale.paragraph()
    if whole:
        tale.one_of(
            '{h} looked at the {food}. It smelled so good! Then {h.he} broke it in two. "Here," {h.he} said. "One half'
            ' for you, and one half for me."',
            '"It is not very big," thought {h}. But {h.he} broke the {food} in the middle and gave away the bigger'
            " piece.",
        )
    else:
        tale.one_of(
            '{h} looked at the {food}. It smelled so good! "Come," {h.he} said. "There is enough for both of us."',
            '{h} was hungry too, but {h.he} could not eat while someone else had nothing. "Sit down and eat with me,"'
            " {h.he} said.",
        )
    tale.one_of(
        "They ate together, and nothing was left.",
        '"Thank you," said {that}. "I will not forget it."',
        "Soon both of them were full, and they rested in the shade.",
    )
    tale.paragraph(f"[Some weeks later|Not long after that|Before the month was over], {trouble}. What now?")
    tale.one_of(
        f"But somebody had been watching. {{That}} came and {favor}.",
        f'"Let me help!" called a voice. It was {{that}}, who {favor}.',
        f"Then {{that}} was there, all at once, and {favor}.",
    )
    tale.one_of(
        '"You shared with me," said {that}, "so I came to help you."',
        '"Now it is I who must thank you," said {h}, and that evening they shared a {food2}.',
        '"How can I thank you?" asked {h}. "You already did," said {that}.',
    )


def _friend_lost_lunch(tale: Tale) -> None:
    _pack_lunch(tale)
    tale.one_of(
        '{F.first} was there too, but {f.he} was not eating. "A [goose|goat|big dog] ate my lunch," {f} said sadly.',
        '{F.first} sat beside {h.him}, with nothing to eat. "I dropped my {food2} in the water," {f} said.',
    )
    tale.paragraph()
    tale.one_of(
        "At first {h} wanted to keep the whole {food}. It was {h.his} favorite! But then {h.he} saw how {f} looked at"
        " the"
        " ground.",
        "{h} turned the {food} in {h.his} hands. There was not very much of it. But {f} was {h.his} friend.",
    )
    tale.one_of(
        '"Take some of mine," said {h}. They took turns until it was all gone.',
        '"Half for you and half for me," said {h}, and {f} began to smile.',
    )
    tale.paragraph()
    tale.one_of(
        'The next day it was the other way round: {h} had left {h.his} lunch at home. "No problem," said {f}, and'
        " {f.he}"
        " put a big {food2} between them.",
        'The next day {f} came with a {food2}. It was twice as big as usual. "One half is yours," said {f}.',
    )


def _hero_forgot_lunch(tale: Tale) -> None:
    tale.one_of(
        "One morning, {h.first} was in such a hurry that {h.he} left {h.his} lunch on the table.",
        "{h.First} slept too long and ran out so fast that {h.he} forgot to take {h.his} {food}.",
        '"Do not forget your lunch!" called {m}. But {h.first} was already far down the road.',
    )
    tale.one_of(
        "At noon, everyone sat down {place.at} to eat. {h.His} stomach made a loud noise.",
        "When it was time to eat, {h} looked into {h.his} bag. It was empty.",
    )
    tale.one_of(
        '"I am not hungry," {h.he} said. But that was not true.',
        "{h} looked away, so that nobody would see {h.him} cry.",
        "",
    )
    tale.paragraph()
    tale.one_of(
        "{F.first} saw it. Without a word, {f.he} gave {h} some of {f.his} {food2}.",
        '"I have too much," said {f.first}, and {f.he} put some of {f.his} {food2} in front of {h}.',
    )
    tale.one_of(
        "Then {s.first} gave {h} an apple, and somebody else gave a piece of cheese. In the end, {h} had the biggest"
        " lunch"
        " of all.",
        'It was the best {food2} that {h} had ever tasted. "Thank you," {h.he} said. "You would do the same," said'
        " {f}.",
    )
    tale.paragraph()
    tale.one_of(
        "The next day, {h} brought a {food}, and {h.he} gave half of it to {f}.",
        "In the evening, {h} and {m} made a {food}. It was for {f}.",
        "A week later, it was {f} who had nothing to eat. This time {h} was the one who shared.",
    )


def _lunch_with_stranger(tale: Tale) -> None:
    _pack_lunch(tale)
    tale.one_of(
        "{S.first} sat all alone {place.at}. Nobody knew {s.him}, and nobody talked to {s.him}.",
        "There was somebody new. It was {s.first}, and {s.he} had nothing to eat but a dry piece of bread.",
    )
    tale.paragraph()
    tale.one_of(
        '{h} was a little shy, but {h.he} went over. "Would you like some of my {food}?" {h.he} asked.',
        '"Is there room for me?" asked {h}. "My {food} is too big for one."',
    )
    tale.one_of(
        '{s} looked up and nodded. "At my old home, I always ate with my friends," {s} said. "I miss them."',
        "{s}'s whole face lit up. They ate, and they talked, and they found out that both of them liked [frogs|riddles|"
        "climbing|singing|old stories].",
    )
    tale.paragraph()
    tale.one_of(
        'The next day, {s} was waiting with a {food2}. "Today it is my turn to share," {s.he} said.',
        "The next day they met again. {s} had brought a {food2}, and now it was {h} who tasted something new.",
    )
    tale.one_of("Soon {f.first} joined them, and then there were three.", "They ate together every day after that.", "")


# what is strange about the neighbor, what it turns out to be, what the neighbor does, what they do together
_NOISES = table("""
a strange banging, late in the evening / making wooden toys / a hammer / built a little wagon
low humming behind the door / keeping bees / a jar of honey / looked after the bees
a light that burned all night / looking at the stars / a long telescope / counted the stars
the sound of a trumpet / learning to play the trumpet / a golden trumpet / made music
smoke of every color / making pots and cups / a wheel with wet clay on it / made cups out of clay
something big being dragged around / building a boat / half a boat / painted the boat
soft singing at midnight / baking bread for the morning / a hot oven / baked little rolls
paint of every color on the doorstep / painting pictures / a wall full of pictures / painted the gate
""")


def new_neighbor(tale: Tale) -> None:
    """Somebody strange moves in; rumor and shyness stand between, a look or a lost ball opens the door."""
    begin(tale)
    strange, doing, tool, together = tale.pick(_NOISES)
    tale.let(strange=strange, doing=doing, tool=tool, together=together)
    open_tale(tale, tale.pick(("", "shy", "curious")))
    tale.one_of(
        "{Day}, somebody new moved in next to {h.first}. It was {s.first}.",
        "{Day}, {h.first} heard wheels. A new neighbor had come! {S.first} was carrying boxes and bags.",
        "The empty house near {h.first} was not empty anymore. {Day}, {s.first} had moved in."
        if not is_animal(tale)
        else "The empty den near {h.first} was not empty anymore. {Day}, {s.first} had moved in.",
    )
    tale.one_of(
        "But there was {strange}.",
        "Nobody knew anything about {s}, but everyone noticed {strange}.",
        "The first thing that {h} noticed was {strange}.",
    )
    branch = tale.pick(("rumor", "shy", "welcome"))
    if branch == "rumor":
        tale.one_of(
            '"{s} must be dangerous," said {f.first}. "Stay away from there!"',
            '"I am sure {s} is up to no good," whispered {f.first}.',
        )
        tale.paragraph()
        tale.one_of(
            "But {h} wanted to know the truth. {h.He} walked up to the door and knocked three times.",
            "Then {h}'s ball rolled right up to the door. {h} had to get it back. {h.His} knees shook, but {h.he}"
            " knocked.",
        )
    elif branch == "shy":
        tale.paragraph()
        tale.one_of(
            "{h} wanted to say hello, but every time {h.he} came to the door, {h.he} turned around again.",
            "{h} watched from behind the hedge for three days. {h.He} did not know what to say.",
        )
        tale.one_of(
            '"Perhaps {s} is just as shy as you are," said {m}. That helped. {h} went over and knocked.',
            "On the fourth day, {h} took one of {m}'s cakes along, and that made {h.him} brave enough to knock.",
        )
    else:
        tale.let(food=tale.pick(FOODS))
        tale.paragraph()
        tale.one_of(
            '"Let us say welcome," said {m}. They packed a {food} in a basket, and {h} carried it over.',
            "{h} thought that it must be hard to be new. So {h.he} took a {food} and went over to say welcome.",
        )
    tale.one_of("The door opened slowly.", '"Come in!" called a friendly voice.', "{s} opened the door and smiled.")
    tale.one_of(
        "Inside, {h} saw {tool}. So that was it! {s} was {doing}.",
        '"Oh, did I disturb you?" asked {s}. "I was only {doing}." Behind {s.him} stood {tool}.'
        if tool.startswith(("half", "a wheel", "a hot", "a long"))
        else '"Oh, did I disturb you?" asked {s}. "I was only {doing}." And {s.he} showed {h} {tool}.',
    )
    tale.paragraph()
    tale.one_of(
        '"May I help?" asked {h}. "I was hoping that you would ask," said {s}. That afternoon, they {together}'
        " together.",
        "{s} showed {h} how to do it, and together they {together} until supper.",
        "The next day {h} came again, and they {together} side by side.",
    )
    if branch == "rumor":
        tale.one_of(
            'Then {h} brought {f} along. "I am sorry for what I said," said {f}, and {s} laughed and let {f.him} try'
            " too.",
            "When {f} heard about it, {f.he} came too, and soon nobody was afraid of {s} anymore.",
        )
    close_tale(
        tale,
        '"I am glad that I knocked," thought {h}.',
        "And that is how {h} and {s} became friends.",
        "A stranger, {h} learned, is only a friend you have not met.",
        "Now, when there was {strange}, {h} just smiled.",
    )


# the secret, where the hero nearly gives it away, how it comes out well
_SECRETS = table("""
a surprise party for {e} / {e} asked why everyone was whispering / {e} opened the door, everyone shouted "Surprise!"
    and {e} laughed until {e.he} cried
a nest with three blue eggs / somebody asked why {h} was looking up into the tree / three little birds looked out of
    the nest, and nobody had disturbed them
a bench that was being built for {e} / {e} asked about all the hammering / {e} sat down on the new bench, stretched
    out, and sighed with joy
a scarf that was being knitted for {e} / {e} complained that it would be a cold winter / {e} unwrapped the scarf, and
    it was just the right color
a den with two baby foxes / a hunter asked about fox tracks / the two young foxes were big enough to run, and they
    were safe
a song that was being written for {e} / {e} heard somebody humming / they sang the song for {e}, all four verses of it
""")


def secret(tale: Tale) -> None:
    """A secret is hard to keep: it is kept under questioning, or it slips out and has to be mended."""
    begin(tale, season=tale.pick(("spring", "summer", "autumn")))
    about, danger, outcome = tale.pick(_SECRETS)
    open_tale(tale, tale.pick(("", "talkative", "")))
    tale.one_of(
        '{Day}, {f.first} took {h.first} aside. "Can you keep a secret?" {f.he} asked.',
        '{Day}, {h.first} met {f.first}. "Come closer," whispered {f}. "I want to tell you a secret."',
    )
    tale.say(f"{{h}} nodded. Then {{f}} told {{h.him}} about {about}.")
    tale.one_of(
        '"You must not tell anyone," said {f}. "I will be as quiet as a stone," said {h}.',
        '"Not a word to anybody!" said {f}. {h} put a finger on {h.his} lips.'
        if not is_animal(tale)
        else '"Not a word to anybody!" said {f}. {h} put a paw on {h.his} lips.',
    )
    tale.paragraph()
    tale.one_of(
        "But a secret is hard to carry. It tickled {h} like a feather, all day long.",
        "All day the secret wanted to jump out of {h}'s mouth.",
        "It was not easy. {h} thought of it in the morning, and {h.he} thought of it at night.",
    )
    tale.say(f"Then {danger}.")
    if tale.chance(0.6):
        tale.one_of(
            '{h} opened {h.his} mouth, and then {h.he} shut it again. "I was just going to say what nice weather it'
            ' is,"'
            " {h.he} said.",
            "{h} felt the words on {h.his} tongue. Quickly, {h.he} put a whole [cookie|plum|nut] into {h.his} mouth,"
            " and"
            " so {h.he} could not say anything at all.",
            '{h} thought of {f}, and of {h.his} promise. "I cannot tell you anything," {h.he} said.',
        )
        tale.paragraph(f"Some days later, the time had come: {outcome}.")
        tale.one_of(
            '"You kept it," said {f}. "It was the hardest thing I ever did," said {h}.',
            "{f} looked at {h} and winked. They had done it together.",
        )
    else:
        tale.one_of(
            "And before {h} could stop it, half of the secret was out. {h} put both hands over {h.his} mouth."
            if not is_animal(tale)
            else "And before {h} could stop it, half of the secret was out. {h} put both paws over {h.his} mouth.",
            '"It is because," {h} began, and then {h.he} turned red. {h.He} had said too much.',
        )
        tale.paragraph()
        tale.one_of(
            '{h} ran to {f} at once. "I am sorry," {h.he} said. "It almost slipped out." {f} was cross at first. But'
            ' then {f.he} said, "It is good that you told me. Let us be quick now."',
            '"{f} will be so sad," thought {h}. So {h.he} went to {f} and told the truth. "We still have time," said'
            " {f}, and together they made a new plan.",
        )
        tale.say(f"They worked hard, and it ended well: {outcome}.")
    close_tale(
        tale,
        "A secret, {h} found, grows lighter when its time has come.",
        '"Next time," said {h}, "please tell me something easier to keep!"',
        "After that, {f} told {h} all {f.his} secrets, because {f.he} knew that they were safe.",
        "{h} was glad that now {h.he} could talk about it as much as {h.he} liked.",
    )


# the contest, how one gets ready, the hero's mishap, what the winner gets
_CONTESTS = table("""
a running race / ran up and down the hill / stumbled over a root near the end / a blue ribbon
a kite contest / mended the tail of {h.his} kite / let go of the string in a strong wind / a silver cup
a pie contest / baked one pie after another / used salt instead of sugar / a golden spoon
a singing contest / sang to the trees / forgot the second verse / a little bell
a boat race / rowed across the water and back / got stuck on a bank of sand / a flag with a star on it
a pumpkin contest / watered and measured {h.his} pumpkin / dropped the pumpkin on the way, and it broke / a red ribbon
a jumping contest / jumped over the ditch again and again / slipped in the mud / a crown of leaves
a drawing contest / drew birds and trees and faces / spilled water on the best picture / a box of paints
""")


def contest(tale: Tale) -> None:
    """The hero gets ready for a contest and does not win: by stopping to help, or by bad luck, and takes it well."""
    begin(tale, season=tale.pick(("spring", "summer", "autumn")))
    name, practice, mishap, prize = tale.pick(_CONTESTS)
    race = name.endswith("race")
    tale.let(contest=name, prize=prize, that="the" + prize[1:])
    open_tale(tale, tale.pick(("", "proud", "eager", "quick")))
    tale.one_of(
        "In {season}, there was going to be {contest} {place.at}. The winner would get {prize}.",
        '{E.first} told everyone about {contest}. "The winner gets {prize}," said {e}.',
    )
    tale.one_of(
        f"{{h.First}} wanted to win more than anything, so {{h.he}} {practice}.",
        f'"I am going to win," said {{h.first}}. For a whole week, {{h.he}} {practice}.',
        f"For many days, {{h.first}} {practice}. {{F.first}} did the same.",
    )
    tale.paragraph("At last the day came.")
    helps = race and tale.chance(0.6)
    if helps:
        tale.one_of(
            "{h} was in front. Then {h.he} heard a cry. {S.first} had fallen and could not get up. {h} looked at the"
            " finish,"
            " and {h.he} looked at {s}. Then {h.he} turned around.",
            "{h} was fast, and only {f.first} was close behind. But at the side of the way sat {s.first}, holding"
            " {s.his}"
            " foot and crying. {h} stopped.",
        )
        tale.say('"Lean on me," said {h}. Slowly, they came to the end together, the very last of all.')
        tale.say("{f.First} had won.")
    else:
        tale.one_of(
            f"Everything went well at first. But then {{h}} {mishap}.",
            f"{{h}} did {{h.his}} best. But {{h.he}} {mishap}.",
            f"{{h}} was so excited that {{h.he}} {mishap}.",
        )
        tale.one_of("{f.First} did better, and {f} won.", "So it was {f.first} who won.")
    tale.paragraph()
    if helps:
        tale.one_of(
            '"I have {prize}," said {f}, "but you have a bigger heart." And {f.he} put the prize into {h}\'s hands.',
            "Everyone clapped for {f}. Then they clapped for {h}, even louder.",
        )
        tale.one_of("{s} never forgot it.", '"You could have won," said {s}. "I won a friend," said {h}.')
    else:
        tale.one_of(
            "{h} felt a lump in {h.his} throat. It hurt to lose. Then {h.he} walked up to {f} and held out {h.his}"
            " hand."
            ' "You were really good," {h.he} said.',
            'At first {h} wanted to cry. But {h.he} saw how happy {f} was, and {h.he} began to clap. "Well done, {f}!"'
            " {h.he} called.",
        )
        tale.one_of(
            '"Come," said {f}. "Without you, I would never have tried so hard. {That} is for both of us."',
            '"Will you practice with me?" asked {f}. "Next year, you may be the one who wins."',
            '"It was close," said {f}, and the two of them shared a lemonade and laughed about {h}\'s bad luck.',
        )
    close_tale(
        tale,
        "{h} had not won {prize}, but {h.he} went home happy.",
        '"Did you win?" asked {m}. "No," said {h}, "but it was a wonderful day."',
        "Losing, {h} learned, is not so bad when you have a friend beside you.",
        "And the next day, {h} and {f} began to practice again, together.",
    )


# what has happened, why the big ones cannot, what the small one does
_SMALL_TASKS = table("""
the key of the barn fell into a crack between the stones / Their hands were all too thick / put one thin arm into the
    crack and pulled out the key
a kitten got stuck in a pipe / The pipe was too narrow for all of them / crawled into the pipe and brought the kitten
    out
the bell rope slipped through a hole in the roof / The roof was too weak to carry them / climbed over the roof as
    lightly as a bird and caught the rope
the gate was stuck, and the lambs were behind it / Nobody could get over or around it / slid under the gate and lifted
    the bolt from inside
a ring rolled under the heavy cupboard / Nobody could move it / lay down flat, reached under it, and found the ring
a bird was caught in the thorns / The thorns were too thick for them / crept in below the thorns and set the bird free
""")


def small_one(tale: Tale) -> None:
    """The smallest is told `you are too small` until only somebody small can help."""
    begin(tale)
    trouble, reason, deed = tale.pick(_SMALL_TASKS)
    open_tale(tale)
    tale.one_of(
        "{h.First} was the smallest of them all.",
        "{h.First} was so small that {h.he} had to [jump to see over the wall|stand on a box to reach the table].",
    )
    tale.let(task="[carry the wood|row the boat|pull the cart|climb the tower|pick the high apples]")
    tale.one_of(
        'When {f.first} went to {task}, {h} asked, "May I come?" "No," said {f}. "You are too small."',
        '"Can I help to {task}?" {h} asked. "You are too small for that," said {m}.',
        '"I want to {task}!" said {h}. But {f.first} only laughed. "Wait until you are bigger," {f.he} said.',
    )
    tale.one_of(
        '{h} was sad. "Will I ever be big enough?" {h.he} wondered.',
        "So {h} stayed behind, and {h.he} kicked a little stone along the path.",
        "{h} measured {h.himself} against the door every day, but it did not help.",
    )
    tale.paragraph(f"Then, {{day}}, {trouble}.")
    tale.one_of(
        f"Everyone came running. {{F.first}} tried, {{m}} tried, and even {{e.first}} tried. {reason}.",
        f'"What shall we do?" cried {{e.first}}. {reason}.',
        f"They pushed and pulled and talked. {reason}.",
    )
    tale.one_of(
        '"Let me try," said {h}. At first nobody listened. "I am small," said {h}, a little louder. "That is just what'
        ' you need!"',
        '"I can do it!" called {h} from the back. They all turned around and looked down at {h.him}.',
    )
    tale.paragraph()
    tale.one_of(
        f"{{h}} took a deep breath. {{h.He}} {deed}.",
        f"They held their breath. {{h}} {deed}.",
        f"And {{h}} went straight to work. {{h.He}} {deed}.",
    )
    tale.one_of(
        '"Hooray for {h}!" they all cried.',
        '"What would we do without you?" said {m}.',
        "{e.First} lifted {h} up high, so that everyone could see {h.him}.",
    )
    tale.one_of(
        '"I will never say that you are too small again," said {f.first}.',
        'And {f.first} said, "Tomorrow you are coming with me."',
        "That evening, {h.he} sat at the head of the table.",
    )
    close_tale(
        tale,
        "{h} was still the smallest of them all, and {h.he} did not mind one bit.",
        "Sometimes it is the smallest who can do the biggest things.",
        "And {h} thought that small was a very good size to be.",
    )


# the work, the mishap, the clever way out, what comes of it
_CHORES = table("""
bake bread / there was no yeast left / made flat breads on the hot stones / warm flat bread with honey
pick apples / the highest apples were out of reach / held up a blanket and shook the tree / a big apple cake
wash the blankets / the rope was old, and the blankets had fallen in the mud / hung them over the hedge and washed
    them again / clean beds that smelled of sun
carry in the wood / the pile was too heavy / made a little sled out of a board / a bright, warm fire
cook soup / the pot had a hole in it / baked the vegetables in the hot ashes / sweet, soft vegetables
look for the lost glasses / the glasses were not on the table and not under it / looked on top of {g}'s head, and
    there they were / a good laugh
wind the wool / the yarn was one big tangle / followed the end of it, over and under, until it was free / two round
    balls of wool
sweep the yard / the wind had blown all the leaves back / swept with the wind and not against it / a clean yard and a
    huge heap of leaves to jump in
""")


def helping_grandparent(tale: Tale) -> None:
    """A chore with a grandparent goes wrong half-way; a clever way out, a good end, and something learned from them."""
    begin(tale)
    chore, mishap, solution, result = tale.pick(_CHORES)
    tale.let(chore=chore)
    open_tale(tale)
    tale.one_of(
        "{Day}, {h.first} went to visit {g}. {g.His} back hurt, and there was so much to do.",
        '{Day}, {h.first} went to {g}\'s house. "I am glad you came," said {g}. "I am not as young as I was."',
        '{g} was tired. "Sit down and rest," said {h.first}. "Today I will help you."',
    )
    tale.one_of(
        '"Shall we {chore}?" asked {g}. "Yes!" said {h}.',
        '"I have to {chore}," said {g}. "I will do it with you," said {h}.',
    )
    tale.paragraph()
    tale.one_of(
        f'They had hardly begun when something went wrong: {mishap}. "Oh dear," said {{g}}.',
        f"All went well until they found that {mishap}.",
        f"But {mishap}. {{g}} sighed and shook {{g.own}} head.",
    )
    tale.one_of("{h} sat down and thought hard.", "{h} scratched {h.his} head.", "{h} did not give up so easily.")
    if tale.chance(0.5):
        tale.one_of(
            '"I have an idea!" {h.he} said.',
            'Then {h.his} eyes grew bright. "I know what to do," {h.he} said.',
        )
        tale.say(f"{{h}} {solution}. {{g}} watched and began to smile.")
    else:
        tale.one_of(
            '"When I was little, my {g.kind} knew a trick," said {g}, and {g.he} whispered it into {h}\'s ear.',
            '"Wait," said {g}. "Long ago, we did it in another way."',
        )
        tale.say(f"So {{h}} {solution}.")
    tale.paragraph()
    tale.one_of(
        f"Soon there was {result}."
        if not result.startswith(("clean", "sweet", "two"))
        else f"Soon there were {result}.",
        f"And what did they have in the end? {result[0].upper() + result[1:]}!",
    )
    tale.one_of(
        '"You have good hands and a good head," said {g}.',
        '"What would I do without you?" said {g}, and {g.he} kissed {h} on the forehead.',
        "They sat down side by side, and {g} told {h} about the days when {g.he} was small.",
        "In the evening, {g} taught {h} an old song, and they sang it together.",
    )
    close_tale(
        tale,
        '"Will you come again tomorrow?" asked {g}. "Tomorrow, and the day after," said {h}.',
        "{h} was tired when {h.he} went home, but it was a happy kind of tired.",
        "Four hands, they found, are better than two.",
        "And the next time something went wrong, {h} knew what to do.",
    )
